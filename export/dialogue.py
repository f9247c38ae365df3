"""The dialogue of `llm/dialogue.json`, as data: templates, instructions, token limits.

In every template the prefix embeddings stand between `before_prefix` and `after_prefix`, where the
paper has its image slot. `specials` are the tokenizer's special tokens in it; the token that ends a
turn follows every answer by itself. Instructions are quoted from the paper's tables 3 to 6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LLAMA3_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
_LLAMA3_ASKED = "{instruction}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

TEMPLATES: dict[str, dict[str, Any]] = {
    # section 3.3: <human>:[image] [instruction] <bot>:[answer]
    "paper": {
        "bos": True,
        "before_prefix": "<human>:",
        "after_prefix": "",
        "first_turn": " {instruction} <bot>:",
        "next_turn": "<human>: {instruction} <bot>:",
        "answer": " {answer}",
        "stop": [],
        "specials": [],
    },
    # Vicuna 1.1 with LLaVA's image slot
    "vicuna": {
        "bos": True,
        "before_prefix": "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: ",
        "after_prefix": "\n",
        "first_turn": "{instruction} ASSISTANT:",
        "next_turn": "USER: {instruction} ASSISTANT:",
        "answer": " {answer}",
        "stop": ["USER:"],
        "specials": [],
    },
    "llama3": {
        "bos": True,
        "before_prefix": _LLAMA3_USER,
        "after_prefix": "\n",
        "first_turn": _LLAMA3_ASKED,
        "next_turn": _LLAMA3_USER + _LLAMA3_ASKED,
        "answer": "{answer}",
        "stop": [],
        "specials": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
}

DIALOGUE: dict[str, dict[str, Any]] = {
    "template": TEMPLATES["paper"],
    "instructions": {
        "caption": "Describe the image concisely.",
        "describe": "Describe the following image in detail.",
        "prompt": "Provide the corresponding Stable Diffusion prompts for the image.",
        "locate": 'Locating the concept of "{concept}"',
    },
    "max_tokens": {"caption": 64, "describe": 128, "prompt": 96, "ask": 48},
}


def write_dialogue(folder: Path) -> None:
    """Write the default template beside a language model."""
    text = json.dumps(DIALOGUE, indent=2, ensure_ascii=False)
    (folder / "dialogue.json").write_text(text + "\n", encoding="utf-8")
