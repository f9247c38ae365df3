"""Text about one volume: the prefix goes in once, every question is a fork of it.

The KV cache holds two sequences. The trunk is `[BOS] before_prefix | prefix`; its first part is the
same for every volume and is computed when the model opens. A question copies the trunk (no
computation), adds its own tokens, and answers greedily.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError
from .llama import KVType, LlamaModel
from .manifest import LanguageSpec
from .text_stream import TextStream

_TRUNK, _TURN = 0, 1
_DEFAULT_LIMIT = 64


class LanguageModel:
    """The bundle's language model.

    Parameters
    ----------
    path : Path
        language.gguf.
    spec : LanguageSpec
        Template, instructions, sizes and the identity of the projector.
    threads : int
        CPU threads.
    kv : {"f16", "f32"}
        Type of the KV cache.

    Raises
    ------
    BundleError
        The file cannot be loaded, or does not fit the manifest.
    """

    def __init__(self, path: Path, spec: LanguageSpec, *, threads: int, kv: KVType = "f16") -> None:
        self._spec = spec
        self._model = LlamaModel(path, context=spec.context, threads=threads, kv=kv)
        self.provider = self._model.provider
        self._ready = False
        begin = [self._model.begin] if spec.template.bos else []
        self._head = begin + self._model.tokenize(spec.template.before_prefix)
        try:
            self._check(path)
        except BundleError:
            self.close()
            raise
        if self._head:
            self._model.add_tokens(self._head, sequence=_TRUNK, position=0)

    def _check(self, path: Path) -> None:
        spec, model = self._spec, self._model
        if model.width != spec.width:
            raise BundleError(
                f"{path} takes embeddings of width {model.width}, the encoder gives {spec.width}; "
                "export the bundle again"
            )
        if -1 in self._head:
            raise BundleError(f"{path} has no token that begins a text, but the template wants one")
        if len(self._head) + spec.prefix_length + 2 > spec.context:
            raise BundleError(
                f"{path}: a context of {spec.context} tokens has no room beside the prefix of "
                f"{spec.prefix_length}; export the bundle again"
            )
        paired = model.metadata("scanside.projector_sha256")
        if paired != spec.projector_sha256:
            raise BundleError(
                f"{path} was made for the projector {str(paired)[:12]}, the bundle's encoder has "
                f"{spec.projector_sha256[:12]}; export the bundle again"
            )

    def close(self) -> None:
        """Free the model; may be called twice."""
        self._model.close()

    def attend(self, prefix: NDArray[np.float32]) -> None:
        """Take a volume's prefix; questions are about it until the next one is taken.

        Parameters
        ----------
        prefix : (M, d) float32
            Finite embeddings, as many and as wide as the manifest says.
        """
        wanted = (self._spec.prefix_length, self._spec.width)
        if prefix.shape != wanted or not np.isfinite(prefix).all():
            raise InputError(f"'prefix' must be finite and of shape {wanted}; got {prefix.shape}")
        self._ready = False
        # the last turn shares the trunk's cells: freed with them, the next trunk lies where the
        # last one did, and no answer depends, not even in its last bit, on the volume before
        self._model.truncate(_TURN, 0)
        self._model.truncate(_TRUNK, len(self._head))
        self._model.add_embeddings(prefix, sequence=_TRUNK, position=len(self._head))
        self._ready = True

    def instruction(self, task: str) -> str:
        """The bundle's instruction for a task: caption, describe or prompt."""
        try:
            return self._spec.instructions[task]
        except KeyError:
            known = ", ".join(self._spec.instructions)
            raise InputError(
                f"this bundle's language model has no task {task!r}; it knows {known}"
            ) from None

    def answer(
        self,
        instruction: str,
        *,
        limit: int | None = None,
        task: str = "ask",
        deadline: float | None = None,
    ) -> Answer:
        """Answer an instruction about the volume last attended to.

        Parameters
        ----------
        instruction : str
            A question, or what `instruction` gives.
        limit : int, optional
            Most tokens; by default what the bundle says for `task`.
        deadline : float, optional
            `time.perf_counter()` at which the answer ends, wherever it is.

        Returns
        -------
        answer : Answer
            Iterate over it for the text as it comes.

        Raises
        ------
        InputError
            An empty instruction, or one longer than the context.
        """
        if not instruction.strip():
            raise InputError("the question is empty")
        if not self._ready:
            raise InputError("there is no volume to talk about; attend to a prefix first")
        template = self._spec.template
        turn = template.after_prefix + template.first_turn.replace("{instruction}", instruction)
        tokens = self._model.tokenize(turn)
        start = len(self._head) + self._spec.prefix_length
        room = self._model.context - start - 1
        if len(tokens) > room:
            raise InputError(
                f"the question has {len(tokens)} tokens; beside the volume's prefix the context of "
                f"{self._model.context} leaves room for {room}"
            )
        limit = limit or self._spec.max_tokens.get(task, _DEFAULT_LIMIT)
        return Answer(self._model, tokens, start, limit, template.stop, deadline)


class Answer:
    """A greedy answer; iterate once to receive its text piece by piece."""

    def __init__(
        self,
        model: LlamaModel,
        prompt: list[int],
        start: int,
        limit: int,
        stop: tuple[str, ...],
        deadline: float | None,
    ) -> None:
        self._model = model
        self._prompt = prompt
        self._start = start
        self._limit = limit
        self._deadline = deadline
        self._stream = TextStream(stop)
        self.tokens: list[int] = []
        """Ids chosen so far, the end token included."""
        self.log_probs: list[float] = []
        """Natural log-probability of each of `tokens`."""
        self.finish = ""
        """Why it ended: end, stop (a stop string), length, context, or deadline."""
        self.first_token_s = float("nan")
        """Seconds from the beginning of the iteration to the first token's choice."""
        self.total_s = float("nan")
        """Seconds of the whole answer."""

    def __iter__(self) -> Iterator[str]:
        began = time.perf_counter()
        model, position = self._model, self._start + len(self._prompt)
        model.fork(_TRUNK, _TURN)
        model.add_tokens(self._prompt, sequence=_TURN, position=self._start)
        while not self.finish:
            token = self._choose()
            if len(self.tokens) == 1:
                self.first_token_s = time.perf_counter() - began
            yield from self._shown(model.piece(token) if not model.ends(token) else b"")
            self.finish = self._reason(token, position)
            if not self.finish:
                model.add_tokens([token], sequence=_TURN, position=position)
                position += 1
        self.total_s = time.perf_counter() - began
        rest = self._stream.finish()
        if rest:
            yield rest

    def _choose(self) -> int:
        logits = self._model.logits()
        token = int(logits.argmax())
        largest = logits[token]
        self.tokens.append(token)
        self.log_probs.append(-float(np.log(np.exp(logits - largest).sum())))
        return token

    def _shown(self, piece: bytes) -> Iterator[str]:
        text = self._stream.push(piece)
        if text:
            yield text

    def _reason(self, token: int, position: int) -> str:
        if self._model.ends(token):
            return "end"
        if self._stream.stopped:
            return "stop"
        if len(self.tokens) >= self._limit:
            return "length"
        if position >= self._model.context:
            return "context"
        if self._deadline is not None and time.perf_counter() >= self._deadline:
            return "deadline"
        return ""

    def read(self) -> str:
        """The whole text, waiting for it."""
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        """The text so far; an answer that its deadline ended stops at a whole word."""
        text = self._stream.text
        return text.rpartition(" ")[0] if self.finish == "deadline" else text

    @property
    def token_s(self) -> float:
        """Mean seconds of a token after the first."""
        return (self.total_s - self.first_token_s) / max(len(self.tokens) - 1, 1)

    @property
    def mean_log_prob(self) -> float:
        """Mean natural log-probability of the tokens, a measure of the model's confidence."""
        return float(np.mean(self.log_probs))
