"""Text about one volume: the prefix goes in once, every text is a fork of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .answer import Answer, Ends
from .dialogue_template import DialogueTemplate
from .errors import BundleError, InputError
from .generation import Generation
from .llama import LlamaModel
from .llama_cache import KVType, LlamaCache
from .manifest import LanguageSpec
from .sampling import TokenChooser
from .trunk import Trunk

_ARCHITECTURE = "llama"
_DEFAULT_LIMIT = 64
_CONCEPT = "{concept}"
GREEDY = Generation()


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
    device : {"cpu", "cuda"}
        Where llama.cpp computes.

    Raises
    ------
    BundleError
        The file cannot be loaded, or does not fit the manifest.
    DeviceError
        This build of llama.cpp does not compute on a GPU, or would do so only in part.
    """

    def __init__(
        self,
        path: Path,
        spec: LanguageSpec,
        *,
        threads: int,
        kv: KVType = "f16",
        device: str = "cpu",
    ) -> None:
        self.spec = spec
        self._threads = threads
        self._kv: KVType = kv
        self._instructed: dict[str, list[int]] = {}
        """First turns of the bundle's own instructions: every volume is asked the same."""
        self._model = LlamaModel(path, device)
        self.provider = self._model.provider
        try:
            self._check(path)
            self.template = DialogueTemplate(spec.template, self._model)
            self._check_room(path)
            self._trunk = self.open_trunk()
        except BaseException:
            self.close()
            raise

    def _check(self, path: Path) -> None:
        spec, model = self.spec, self._model
        architecture = model.metadata("general.architecture")
        if architecture != _ARCHITECTURE:
            raise BundleError(
                f"{path} is of the architecture {architecture!r}; supported is {_ARCHITECTURE!r} "
                "(Llama 2, Vicuna, Llama 3, 3.1, 3.2)"
            )
        if model.width != spec.width:
            raise BundleError(
                f"{path} takes embeddings of width {model.width}, the encoder gives {spec.width}; "
                "export the bundle again"
            )
        paired = model.metadata("scanside.projector_sha256")
        if paired != spec.projector_sha256:
            raise BundleError(
                f"{path} was made for the projector {str(paired)[:12]}, the bundle's encoder has "
                f"{spec.projector_sha256[:12]}; export the bundle again"
            )

    def _check_room(self, path: Path) -> None:
        spec = self.spec
        if len(self.template.head) + spec.prefix_length + 2 > spec.context:
            raise BundleError(
                f"{path}: a context of {spec.context} tokens has no room beside the prefix of "
                f"{spec.prefix_length}; export the bundle again"
            )

    def open_trunk(self, *, branches: int = 1, joined: bool | None = None) -> Trunk:
        """A KV cache of its own, for one volume and so many texts that live at the same time.

        With `joined` prefix and first text are one pass, as they are by default on a GPU where only
        one text lives at a time.

        Raises
        ------
        InputError
            Several branches that are to be joined: their memory is not shared.
        BundleError
            There is not enough memory, or for `joined` no embeddings that can be read.
        """
        if joined is None:
            joined = self._model.on_gpu and branches == 1
        if joined and branches != 1:
            raise InputError(f"one branch can be joined to its prefix; got {branches}")
        if joined:
            _ = self._model.token_rows  # what fails fails here, not in the first text
        cache = LlamaCache(
            self._model,
            context=self.spec.context,
            sequences=1 + branches,
            apart=branches > 1,
            threads=self._threads,
            kv=self._kv,
        )
        shape = self.spec.prefix_length, self.spec.width
        return Trunk(cache, self.template.head, shape, joined=joined)

    def close(self) -> None:
        """Free the model and everything that is open on it; may be called twice."""
        self._model.close()

    def attend(self, prefix: NDArray[np.float32]) -> None:
        """Take a volume's prefix; `answer` is about it until the next one is taken.

        Parameters
        ----------
        prefix : (M, d) float32
            Finite embeddings, as many and as wide as the manifest says.
        """
        self._trunk.attend(prefix)

    def instruction(self, task: str, concept: str | None = None) -> str:
        """The bundle's instruction for a task: caption, describe, prompt, or locate with a concept.

        Raises
        ------
        InputError
            An unknown task, or a concept that is missing or not wanted.
        """
        try:
            text = self.spec.instructions[task]
        except KeyError:
            known = ", ".join(self.spec.instructions)
            raise InputError(
                f"this bundle's language model has no task {task!r}; it knows {known}"
            ) from None
        if (_CONCEPT in text) != bool(concept and concept.strip()):
            wants = "a concept, for example 'red circle'" if _CONCEPT in text else "no concept"
            raise InputError(f"the task {task!r} needs {wants}; got {concept!r}")
        return text.replace(_CONCEPT, (concept or "").strip())

    def answer(
        self,
        instruction: str,
        *,
        limit: int | None = None,
        task: str = "ask",
        deadline: float | None = None,
        generation: Generation = GREEDY,
    ) -> Answer:
        """Answer an instruction about the volume last attended to.

        Parameters
        ----------
        instruction : str
            A question, or what `instruction` gives.
        limit : int, optional
            Most tokens; by default what `generation` says, or else the bundle for `task`.
        deadline : float, optional
            `time.perf_counter()` at which the answer ends, at a whole word.
        generation : Generation
            Sampling, stop strings, grammar.

        Returns
        -------
        answer : Answer
            Iterate over it for the text as it comes.

        Raises
        ------
        InputError
            An empty instruction, one that forges a turn, or one longer than the context.
        """
        if not self._trunk.ready:
            raise InputError("there is no volume to talk about; attend to a prefix first")
        prompt = self.first_turn(instruction)
        ends = self.ends(task, generation, limit, deadline)
        return Answer(self._trunk.branches[0], prompt, self.chooser(generation), ends)

    def first_turn(self, question: str) -> list[int]:
        """Token ids from the end of the prefix to the beginning of an answer.

        Raises
        ------
        InputError
            As `answer` does.
        """
        known = self._instructed.get(question)
        if known is not None:
            return known
        prompt = self.template.first_turn(question)
        room = self.spec.context - len(self._trunk) - 1
        if len(prompt) > room:
            raise InputError(
                f"the question has {len(prompt)} tokens; beside the volume's prefix the context of "
                f"{self.spec.context} leaves room for {room}; ask a shorter one"
            )
        if question in self.spec.instructions.values():
            self._instructed[question] = prompt
        return prompt

    def ends(
        self,
        task: str,
        generation: Generation,
        limit: int | None = None,
        deadline: float | None = None,
    ) -> Ends:
        """Where an answer to a task ends."""
        limit = limit or generation.max_tokens or self.spec.max_tokens.get(task, _DEFAULT_LIMIT)
        stop = (*self.spec.template.stop, *generation.stop)
        return Ends(limit=limit, stop=stop, deadline=deadline)

    def chooser(self, generation: Generation) -> TokenChooser:
        """What chooses the tokens of one answer."""
        return TokenChooser(self._model, generation.sampling, generation.rules)
