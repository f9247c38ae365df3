"""The language model of the GPU suite: a Llama of 8B parameters behind a brain's prefix.

llama.cpp ends the process, not the call, so it runs in one of its own, which says everything that
llama.cpp says. Where that process dies, its log is kept, and the next of WAYS is tried: which of
them live tells what is to blame.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import json
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from gpu_measure import distance, judged, repeated, resident_mib, summary
from gpu_networks import FARTHEST
from gpu_prepare import LANGUAGES, language_file
from random_gguf import PROJECTOR

from scanside.runtime import llama
from scanside.runtime.language import LanguageModel
from scanside.runtime.manifest import LanguageSpec
from scanside.runtime.manifest_reader import read_template
from scanside.runtime.trunk import Branch

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


WAYS: dict[str, tuple[str, ...]] = {
    "as the runtime opens it": (),
    "one CPU thread": ("--threads", "1"),
    "without flash attention": ("--kv", "f32"),
}
"""What a process of its own is told; the first that lives gives the times."""
LOG_LINES = 60
"""Last lines of a process that died, kept in the result."""


def language_part(args: Namespace, _: str) -> Json:
    """Every language model that was written, by its quantization."""
    found = {q: language_file(args.scratch, q) for q in LANGUAGES}
    written = {q: path for q, path in found.items() if path.is_file()}
    if not written:
        raise SystemExit(f"{found[LANGUAGES[0]]} was not written in time")
    return {quantization: one_model(args, path) for quantization, path in written.items()}


def one_model(args: Namespace, path: Path) -> Json:
    """Prefill of 289 tokens, first token, tokens one by one, forks of the prefix."""
    words = [sys.executable, str(Path(__file__).resolve()), str(path), "--device", args.device]
    words += ["--threads", str(args.threads), "--runs", str(max(int(200 * args.scale), 3))]
    words += ["--width", str(256 if args.small else 4096)]
    died: Json = {}
    for way, more in WAYS.items():
        answer = args.scratch / "parts" / f"{path.stem} {way}.json".replace(" ", "_")
        found = apart([*words, *more, "--answer", str(answer)], answer)
        if "died" not in found:
            return {"way": way, **found, **({"died": died} if died else {})}
        died[way] = found
    first = next(iter(died.values()))
    return {"failed": f"llama.cpp's process died: {first['died']}", "died": died}


def apart(words: Sequence[str], answer: Path) -> Json:
    """What a process writes to `answer`; how it died, and its last words, where it writes nothing.

    Its log stays beside the answer, and keeps what it said however it ended.
    """
    answer.parent.mkdir(parents=True, exist_ok=True)
    answer.unlink(missing_ok=True)
    log = answer.with_suffix(".log")
    with open(log, "wb") as stream:
        code = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code == 0 and answer.is_file():
        return json.loads(answer.read_text())
    lines = log.read_text(errors="replace").strip().splitlines()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return {"died": how, "log": [line[:400] for line in lines[-LOG_LINES:]]}


def language_spec(path: Path, width: int) -> LanguageSpec:
    """What a bundle's manifest would say of a file of `random_gguf.py`."""
    return LanguageSpec(
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


def measure(args: Namespace) -> Json:
    """Open the model in this process, and time it."""
    spec = language_spec(args.path, args.width)
    rng = np.random.default_rng(3)
    prefix = (0.02 * rng.standard_normal((PREFIX_ROWS, args.width))).astype(np.float32)
    began = time.perf_counter()
    options: Any = {"threads": args.threads, "device": args.device, "kv": args.kv}
    with closing(LanguageModel(args.path, spec, **options)) as language:
        opened_s = time.perf_counter() - began
        print(f"opened in {opened_s:.2f} s", file=sys.stderr, flush=True)
        return {
            "provider": language.provider,
            "gguf_bytes": args.path.stat().st_size,
            "open_s": round(opened_s, 2),
            **_measured(language, prefix, args.runs),
            "host_mib": round(resident_mib()),
        }


def say_everything() -> None:
    """Write every line of llama.cpp's log to stderr, besides what the runtime keeps of it."""
    api = llama.llama_cpp()
    kept = llama._kept[-1]  # what the runtime has told llama.cpp to call

    def said(level: int, text: bytes, data: Any) -> None:
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()
        kept(level, text, data)

    callback = api.llama_log_callback(said)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    llama._kept.append(callback)


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

    apart = language.open_trunk(joined=False)

    def question_alone() -> None:
        apart.branches[0].begin(prompt)
        apart.branches[0].logits()  # waits

    def two_passes() -> None:
        apart.attend(prefix)
        question_alone()

    prefill()
    chosen = int(branch.logits().argmax())
    print("a prefix and a prompt went through", file=sys.stderr, flush=True)
    joined = branch.logits().copy()
    two_passes()
    moved = distance(joined, apart.branches[0].logits())
    if moved > FARTHEST:
        raise SystemExit(f"one pass and two differ by {moved:.1e}; nothing is timed")
    prefill()
    if int(branch.logits().argmax()) != chosen:
        raise SystemExit("the same prefix and prompt gave another first token; nothing is timed")
    both = summary(repeated(two_passes, runs, warm=2))
    attends = summary(repeated(lambda: apart.attend(prefix), runs, warm=2))
    questions = summary(repeated(question_alone, runs, warm=2))
    prefills = summary(repeated(prefill, runs, warm=5))
    firsts = summary(repeated(first_token, runs, warm=1))
    forks = summary(repeated(fork, runs, warm=5))
    each = summary(_tokens(branch, prefill, runs))
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
        "prefix alone": {"tokens": len(trunk), "wall_ms": attends},
        "two passes": {"one_differs_by": float(f"{moved:.1e}"), "wall_ms": both},
        "question alone": {"tokens": len(prompt), "wall_ms": questions},
        "fork": {"rows": len(trunk), "wall_ms": forks, **judged("fork", forks, "p50")},
        **_through_answers(language, prefix, runs),
    }


def _tokens(branch: Branch, prefill: Callable[[], None], runs: int) -> list[float]:
    """Seconds of each token after the first, of a few texts."""
    seconds: list[float] = []
    for _ in range(max(runs // 20, 2)):
        prefill()

        def one() -> None:
            branch.append(int(branch.logits().argmax()))

        seconds += repeated(one, ANSWER_TOKENS, warm=4)
    return seconds


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


def main() -> int:
    """Measure in this process; what the suite calls in one of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path, help="a file of random_gguf.py")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--kv", choices=["f16", "f32"], default="f16")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--answer", type=Path)
    args = parser.parse_args()
    faulthandler.enable()
    say_everything()
    found = json.dumps(measure(args))
    if args.answer:
        args.answer.write_text(found)
    else:
        print(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
