"""The language model of the GPU suite: a Llama of 8B parameters behind a brain's prefix."""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import closing
from typing import Any

import numpy as np
from gpu_measure import judged, repeated, resident_mib, summary
from random_gguf import PROJECTOR

from scanside.runtime.language import LanguageModel
from scanside.runtime.manifest import LanguageSpec
from scanside.runtime.manifest_reader import read_template

Json = dict[str, Any]
PREFIX_ROWS, PROMPT_TOKENS, ANSWER_TOKENS = 257, 32, 64
TEMPLATE = {
    "bos": True,
    "before_prefix": "",
    "after_prefix": "",
    "first_turn": "{instruction}",
    "next_turn": "{instruction}",
    "answer": "{answer}",
    "stop": [],
    "specials": [],
}


def language_part(args: Namespace, _: str) -> Json:
    """Prefill of 289 tokens, first token, tokens one by one, forks of the prefix."""
    path = args.scratch / "language.gguf"
    if not path.is_file():
        raise SystemExit(f"{path} was not written in time")
    width = 256 if args.small else 4096
    spec = LanguageSpec(
        file=path.name,
        quantization="q4_k_m",
        context=512,
        prefix_length=PREFIX_ROWS,
        width=width,
        template=read_template(TEMPLATE),
        instructions={},
        max_tokens={},
        projector_sha256=PROJECTOR,
    )
    rng = np.random.default_rng(3)
    prefix = (0.02 * rng.standard_normal((PREFIX_ROWS, width))).astype(np.float32)
    began = time.perf_counter()
    with closing(LanguageModel(path, spec, threads=args.threads, device=args.device)) as language:
        opened_s = time.perf_counter() - began
        return {
            "provider": language.provider,
            "gguf_bytes": path.stat().st_size,
            "open_s": round(opened_s, 2),
            **_measured(language, prefix, max(int(200 * args.scale), 3)),
            "host_mib": round(resident_mib()),
        }


def _measured(language: LanguageModel, prefix: Any, runs: int) -> Json:
    trunk = language.open_trunk()
    branch = trunk.branches[0]
    prompt = _prompt(language)

    def prefill() -> None:
        trunk.attend(prefix)
        branch.begin(prompt)
        logits = branch.logits()
        assert np.isfinite(logits[:8]).all(), "the model's logits are not finite"

    def fork() -> None:
        trunk.cache.fork(0, 1)

    def first_token() -> None:
        prefill()
        int(branch.logits().argmax())

    prefill()
    chosen = int(branch.logits().argmax())
    prefill()
    if int(branch.logits().argmax()) != chosen:
        raise SystemExit("the same prefix and prompt gave another first token; nothing is timed")
    prefills = summary(repeated(prefill, runs, warm=5))
    firsts = summary(repeated(first_token, runs, warm=1))
    forks = summary(repeated(fork, runs, warm=5))
    tokens: list[float] = []
    for _ in range(max(runs // 20, 2)):
        prefill()

        def one() -> None:
            branch.append(int(branch.logits().argmax()))

        tokens += repeated(one, ANSWER_TOKENS, warm=4)
    each = summary(tokens)
    return {
        "prompt_tokens": len(prompt),
        "prefill": {
            "tokens": len(trunk) + len(prompt),
            "wall_ms": prefills,
            **judged("prefill", prefills, "p50"),
        },
        "first_token": {"wall_ms": firsts, **judged("first token", firsts, "p99")},
        "token": {
            "wall_ms": each,
            "tokens_per_s": round(1000 / each["p50"], 1),
            **judged("token", each, "p50"),
        },
        "fork": {"rows": len(trunk), "wall_ms": forks, **judged("fork", forks, "p50")},
        **_through_answers(language, prefix, runs),
    }


def _through_answers(language: LanguageModel, prefix: Any, runs: int) -> Json:
    """The same as a caller has it: `attend` and `answer`."""
    first: list[float] = []
    rates: list[float] = []
    for _ in range(max(runs // 20, 2)):
        began = time.perf_counter()
        language.attend(prefix)
        attended = time.perf_counter() - began
        answer = language.answer("Describe the image concisely.", limit=32)
        answer.read()
        first.append(attended + answer.first_token_s)
        rates.append(answer.token_s)
    return {"answer": {"first_token_ms": summary(first), "token_ms": summary(rates)}}


def _prompt(language: LanguageModel) -> list[int]:
    """About as many tokens as a question has; the tokenizer is a small one."""
    tokens = language.first_turn("Describe the image in detail, and where each thing stands. " * 4)
    return tokens[:PROMPT_TOKENS]
