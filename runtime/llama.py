"""llama.cpp through llama-cpp-python's low-level API: a GGUF file's weights and vocabulary.

llama.cpp ends the process, not the call, on much that it does not expect. So what it is given is
checked here and in `llama_cache.py`, in Python, before anything reaches it.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from collections import deque
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BundleError, DeviceError, InputError, MissingExtraError
from .token_rows import TokenRows

if TYPE_CHECKING:
    from .llama_cache import LlamaCache

_NO_VOCABULARY = 0
_NO_TOKEN = -1

_ALL_LAYERS = 1 << 20
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")

_log: deque[str] = deque(maxlen=8)
_offloaded: list[tuple[int, int]] = []
"""Layers on a GPU and layers at all, of the models that were loaded, as llama.cpp says."""
_kept: list[Any] = []


@cache
def llama_cpp() -> Any:
    """The binding's module, its log turned into a short memory for error messages."""
    try:
        import llama_cpp.llama_cpp as binding
    except ImportError as exc:
        raise MissingExtraError(
            "llama-cpp-python is not installed; run pip install llama-cpp-python"
        ) from exc

    def remember(level: int, text: bytes, _: Any) -> None:
        told = _OFFLOADED.search(text.decode(errors="replace"))
        if told:
            _offloaded.append((int(told[1]), int(told[2])))
        if level in (3, 4):  # warning, error
            _log.append(text.decode(errors="replace").strip())

    callback = binding.llama_log_callback(remember)
    binding.llama_log_set(callback, ctypes.c_void_p(0))
    _kept.append(callback)  # llama.cpp holds only the pointer
    binding.llama_backend_init()
    return binding


@cache
def logits_address() -> Any:
    """`llama_get_logits_ith` that gives a plain address, or None: for each token the binding's own
    makes a pointer object, which takes longer than to choose the token.
    """
    found = ctypes.cast(llama_cpp().llama_get_logits_ith, ctypes.c_void_p)
    assert found.value is not None, "a function of a loaded library"
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(found.value)


def last_words() -> str:
    """What llama.cpp said last, for the message of an error."""
    return "; ".join(_log) or "no reason"


_FLAGS = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
WITHOUT_AMX = (
    f"CFLAGS='{_FLAGS}' CXXFLAGS='{_FLAGS}' pip install --force-reinstall --no-deps "
    "--no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)
"""Builds a llama.cpp that may lay weights out anew on a processor with AMX."""


def may_repack(system_info: bytes) -> bool:
    """Whether llama.cpp may lay weights out anew for this processor.

    Not where it was built for AMX: compilers drop the stores of its tile configuration, and the
    first matrix product then ends the process (https://github.com/ggml-org/llama.cpp/pull/26954).
    Weights as they lie in the file are multiplied with AVX-512 instead.

    Parameters
    ----------
    system_info : bytes
        What `llama_print_system_info` says.
    """
    return b"AMX_INT8 = 1" not in system_info


class LlamaModel:
    """The weights and the vocabulary of one GGUF file; a `LlamaCache` computes with them.

    Parameters
    ----------
    path : Path
        The .gguf file.
    device : {"cpu", "cuda"}
        Where its layers lie and are computed: all of them, or it is an error.

    Raises
    ------
    BundleError
        The file cannot be loaded, or holds no tokenizer.
    DeviceError
        This build of llama.cpp has no GPU in it, or not every layer went there.
    MissingExtraError
        llama-cpp-python is not installed.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path = path
        self.api = api = llama_cpp()
        self.on_gpu = device != "cpu"
        self.provider = "llama.cpp GPU" if self.on_gpu else "llama.cpp CPU"
        """What executes it, as `placement` reports it."""
        if self.on_gpu and not api.llama_supports_gpu_offload():
            raise DeviceError(
                f"device {device!r} was asked for language, but this llama.cpp is built without a "
                f"GPU; write '{device},language=cpu', or run CMAKE_ARGS=-DGGML_CUDA=on pip install "
                "--force-reinstall --no-binary llama-cpp-python llama-cpp-python"
            )
        self.caches: weakref.WeakSet[LlamaCache] = weakref.WeakSet()
        """Caches that are open on these weights; they are closed before the weights are freed."""
        _log.clear()
        _offloaded.clear()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = _ALL_LAYERS if self.on_gpu else 0
        parameters.use_extra_bufts = may_repack(api.llama_print_system_info())
        pointer = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not pointer:
            raise BundleError(f"{path}: llama.cpp cannot load it ({last_words()})")
        self._pointer: Any = pointer
        self._free = weakref.finalize(self, api.llama_model_free, pointer)
        self._free.atexit = False  # the process ends anyway
        if self.on_gpu:
            self._check_offload()
        if api.llama_vocab_type(self.vocabulary) == _NO_VOCABULARY:
            self.close()
            raise BundleError(f"{path} holds no tokenizer; export the bundle again")
        self.width = int(api.llama_model_n_embd_inp(self.pointer))
        self.vocabulary_size = int(api.llama_vocab_n_tokens(self.vocabulary))
        self.size_bytes = int(api.llama_model_size(self.pointer))
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    def _check_offload(self) -> None:
        """DeviceError unless llama.cpp said that every layer lies on the GPU."""
        there, layers = _offloaded[-1] if _offloaded else (0, 0)
        if there < layers or not layers:
            self.close()
            said = f"{there} of {layers} layers" if layers else "nothing that it tells of"
            raise DeviceError(
                f"{self.path}: llama.cpp put {said} on the GPU; free memory on it, or write "
                "'language=cpu' into the device"
            )

    def close(self) -> None:
        """Free the weights and every cache that is open on them; may be called twice."""
        for open_cache in list(self.caches):
            open_cache.close()
        self._free()
        self._pointer = None

    @property
    def pointer(self) -> Any:
        """llama.cpp's own handle of the weights."""
        if not self._pointer:
            raise InputError("the language model is closed; open the bundle again")
        return self._pointer

    @property
    def vocabulary(self) -> Any:
        """llama.cpp's own handle of the vocabulary."""
        return self.api.llama_model_get_vocab(self.pointer)

    @cached_property
    def token_rows(self) -> TokenRows:
        """The embeddings of tokens; BundleError where the file's table cannot be read."""
        return TokenRows(self.path, self.api._lib)

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's metadata as text, None if it is not there."""
        buffer = ctypes.create_string_buffer(1024)
        length = self.api.llama_model_meta_val_str(self.pointer, key.encode(), buffer, 1024)
        return buffer.value.decode(errors="replace") if length >= 0 else None

    @property
    def begin(self) -> int:
        """Id of the token that begins a text, -1 without one."""
        return int(self.api.llama_vocab_bos(self.vocabulary))

    @property
    def end(self) -> int:
        """Id of the token that ends a turn, or else a text; -1 without one."""
        turn = int(self.api.llama_vocab_eot(self.vocabulary))
        return turn if turn != _NO_TOKEN else int(self.api.llama_vocab_eos(self.vocabulary))

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        if token not in self._ends:
            self._ends[token] = bool(self.api.llama_vocab_is_eog(self.vocabulary, token))
        return self._ends[token]

    def is_control(self, token: int) -> bool:
        """Whether a token steers the model and stands for no text."""
        return bool(self.api.llama_vocab_is_control(self.vocabulary, token))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; none is added.

        Parameters
        ----------
        special : bool
            Whether special tokens are recognised in the text. Without it `</s>` is four characters.

        Raises
        ------
        InputError
            Text that is not valid Unicode.
        """
        if not text:
            return []
        try:
            raw = text.encode()
        except UnicodeEncodeError as exc:
            raise InputError(f"{text!r} is not valid UTF-8; type it in a UTF-8 terminal") from exc
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.api.llama_tokenize(self.vocabulary, raw, len(raw), ids, room, False, special)
        if count < 0:
            raise InputError(f"llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Bytes of a token; special tokens have none. A character may span several tokens."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = self.api.llama_token_to_piece(self.vocabulary, token, buffer, 256, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self.api.llama_token_to_piece(
                self.vocabulary, token, buffer, -length, 0, False
            )
        return buffer.raw[:length]
