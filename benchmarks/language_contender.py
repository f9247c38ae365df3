"""One contender of language.py, in a process of its own; prints one JSON document.

python benchmarks/language_contender.py FOLDER scanside q4_k_m --prefixes 96 257
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanside.runtime.chat import Chat
from scanside.runtime.generation import Generation
from scanside.runtime.language import LanguageModel
from scanside.runtime.llama import llama_cpp
from scanside.runtime.manifest import LanguageSpec
from scanside.runtime.manifest_reader import read_template

Floats = NDArray[np.float32]
Json = dict[str, Any]
QUESTIONS = ("Describe the following image in detail.", "Describe the image concisely.")
"""Made of words that the random checkpoint's small tokenizer knows, as a real one knows all."""
ROOM = 256
"""Tokens of the context beside prefix and answer."""


def random_prefix(rows: int, width: int, seed: int) -> Floats:
    """Rows of the size that random embeddings have."""
    rng = np.random.default_rng(seed)
    return (0.02 * rng.standard_normal((rows, width))).astype(np.float32)


def timed(first_token_s: float, total_s: float, tokens: int) -> Json:
    """One answer: time to the first token, and the speed of those after it."""
    return {
        "first_token_s": first_token_s,
        "tokens_per_s": (tokens - 1) / (total_s - first_token_s),
        "tokens": tokens,
    }


def peak_bytes() -> int:
    """Most memory that this process has held; `getrusage` would count the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Scanside:
    """A GGUF file, run by the runtime."""

    def __init__(self, folder: Path, precision: str, threads: int, tokens: int) -> None:
        dialogue = json.loads((folder / "llm/dialogue.json").read_text())
        self._template = read_template(dialogue["template"])
        self._path, self._precision = folder / f"{precision}.gguf", precision
        self._threads, self._tokens = threads, tokens
        self._width = json.loads((folder / "llm/config.json").read_text())["hidden_size"]
        self.built = llama_cpp().llama_print_system_info().decode()
        """For which instructions llama.cpp was built."""

    def _open(self, rows: int) -> LanguageModel:
        spec = LanguageSpec(
            file=self._path.name,
            quantization=self._precision,
            context=rows + self._tokens + ROOM,
            prefix_length=rows,
            width=self._width,
            template=self._template,
            instructions={"caption": QUESTIONS[1]},
            max_tokens={},
            projector_sha256="benchmark",
        )
        return LanguageModel(self._path, spec, threads=self._threads)

    def logits(self, rows: int) -> Floats:
        """(vocabulary,) float32 behind the prompt."""
        with closing(self._open(rows)) as language:
            trunk = language.open_trunk()
            trunk.attend(random_prefix(rows, self._width, 0))
            trunk.branches[0].begin(language.template.first_turn(QUESTIONS[0]))
            return trunk.branches[0].logits().copy()

    def answers(self, rows: int, runs: int) -> Iterator[Json]:
        """Answers to one question, each about another prefix; the first is warm-up."""
        with closing(self._open(rows)) as language:
            for seed in range(runs + 1):
                prefix = random_prefix(rows, self._width, seed)
                began = time.perf_counter()
                language.attend(prefix)
                attended_s = time.perf_counter() - began
                answer = language.answer(QUESTIONS[0], limit=self._tokens)
                answer.read()
                total_s = attended_s + answer.total_s
                if seed:
                    yield timed(attended_s + answer.first_token_s, total_s, len(answer.tokens))

    def fork_equals_fresh(self, rows: int) -> bool:
        """Whether a text forked behind a conversation has the tokens of one about a fresh volume,
        and their very probabilities.
        """
        prefix = random_prefix(rows, self._width, 0)
        how = Generation(max_tokens=self._tokens)
        told: list[Any] = []
        with closing(self._open(rows)) as language:
            for talked in (True, False):
                with Chat(language, prefix) as chat:
                    if talked:
                        chat.ask(QUESTIONS[0], how)
                    told.append(chat.write("caption", how).tokens)
        return told[0] == told[1]

    def questions(self, rows: int, runs: int) -> Iterator[tuple[float, float]]:
        """Seconds to the first token of a first and of a second question about one volume."""
        with closing(self._open(rows)) as language:
            for seed in range(runs + 1):
                prefix = random_prefix(rows, self._width, seed)
                began = time.perf_counter()
                with Chat(language, prefix) as chat:
                    opened_s = time.perf_counter() - began
                    how = Generation(max_tokens=8)
                    first, second = (chat.ask(question, how) for question in QUESTIONS)
                if seed:
                    in_s = [reply.latency_ms["first_token"] / 1e3 for reply in (first, second)]
                    yield opened_s + in_s[0], in_s[1]


class Transformers:
    """The checkpoint, run by transformers' own `generate`."""

    def __init__(self, folder: Path, precision: str, threads: int, tokens: int) -> None:
        import torch
        from transformers import AutoTokenizer, LlamaForCausalLM

        from scanside.export.torch_language import TorchLanguage

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._tokens = torch, tokens
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._dtype = dtype
        self._llm = LlamaForCausalLM.from_pretrained(folder / "llm", dtype=dtype).eval()
        language = TorchLanguage(folder, json.loads((folder / "llm/dialogue.json").read_text()))
        vars(language)["tokenizer"] = AutoTokenizer.from_pretrained(folder / "llm")
        self._before, self._after = language.segments(QUESTIONS[0])
        self._end = int(language.tokenizer.eos_token_id)
        self._width = self._llm.config.hidden_size
        self.built = torch.backends.cpu.get_cpu_capability()

    def _prompt(self, prefix: Floats) -> Any:
        embed, torch = self._llm.get_input_embeddings(), self._torch
        rows = torch.from_numpy(prefix).to(self._dtype)
        before, after = (embed(torch.tensor(ids)) for ids in (self._before, self._after))
        return torch.cat([before, rows, after])[None]

    def logits(self, rows: int) -> Floats:
        """(vocabulary,) float32 behind the prompt."""
        prompt = self._prompt(random_prefix(rows, self._width, 0))
        return self._llm(inputs_embeds=prompt, logits_to_keep=1).logits[0, -1].float().numpy()

    def answers(self, rows: int, runs: int) -> Iterator[Json]:
        """Answers to one question, each about another prefix; the first is warm-up."""
        for seed in range(runs + 1):
            prefix = random_prefix(rows, self._width, seed)
            stamps = _Stamps()
            began = time.perf_counter()
            prompt = self._prompt(prefix)
            self._llm.generate(
                inputs_embeds=prompt,
                attention_mask=self._torch.ones(prompt.shape[:2], dtype=self._torch.long),
                do_sample=False,
                max_new_tokens=self._tokens,
                pad_token_id=self._end,
                eos_token_id=self._end,
                streamer=stamps,
            )
            if seed:
                ends = [at - began for at in stamps.at]
                yield timed(ends[0], ends[-1], len(ends))

    def fork_equals_fresh(self, rows: int) -> None:
        """There is nothing to fork: `generate` keeps nothing from one call to the next."""
        del rows

    def questions(self, rows: int, runs: int) -> Iterator[tuple[float, float]]:
        """None, as `fork_equals_fresh` says."""
        del rows, runs
        return iter(())


class _Stamps:
    """When `generate` had each token; it is told the prompt's ids first, here none."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, ids: Any) -> None:
        if ids.numel():
            self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("library", choices=["scanside", "transformers"])
    parser.add_argument("precision")
    parser.add_argument("--prefixes", type=int, nargs="+", required=True)
    parser.add_argument("--reused", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    kind = Scanside if args.library == "scanside" else Transformers
    contender = kind(args.folder, args.precision, args.threads, args.tokens)
    document = {
        "built": contender.built,
        "runs": {n: list(contender.answers(n, args.runs)) for n in args.prefixes},
        "questions_s": list(contender.questions(args.reused, args.runs)),
        "peak_bytes": peak_bytes(),
        "fork_equals_fresh": contender.fork_equals_fresh(args.reused),
        "logits": {n: contender.logits(n).astype(float).tolist() for n in args.prefixes},
    }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
