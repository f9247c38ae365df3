"""The dialogue template of `llm/dialogue.json`, as data.

The paper's form is `<human>:[image] [instruction] <bot>:[answer]`.

The image slot holds the prefix embeddings. Instructions are quoted from the paper's tables 3 to 6.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DIALOGUE: dict[str, dict[str, Any]] = {
    "template": {
        "bos": True,
        "before_prefix": "<human>:",
        "after_prefix": "",
        "first_turn": " {instruction} <bot>:",
        "next_turn": "<human>: {instruction} <bot>:",
        "answer": " {answer}",
        "stop": [],
    },
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
