"""llama.cpp through llama-cpp-python's low-level API, every call guarded.

llama.cpp ends the process, not the call, on a batch that is too long, rows of another width, or a
file without a tokenizer. So all of that is checked here, in Python, before anything reaches it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError, MissingExtraError, ScansideError

KVType: TypeAlias = Literal["f16", "f32"]
_GGML_TYPES: dict[KVType, int] = {"f32": 0, "f16": 1}
_NO_VOCABULARY = 0
_UBATCH = 512
_SMALL_BYTES = 64 << 20

_log: deque[str] = deque(maxlen=8)
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
        if level in (2, 3):  # warning, error
            _log.append(text.decode(errors="replace").strip())

    callback = binding.llama_log_callback(remember)
    binding.llama_log_set(callback, ctypes.c_void_p(0))
    _kept.append(callback)  # llama.cpp holds only the pointer
    binding.llama_backend_init()
    return binding


class LlamaModel:
    """One GGUF model with one KV cache that several sequences share.

    Parameters
    ----------
    path : Path
        The .gguf file.
    context : int
        Tokens that all sequences have together; a forked sequence shares its beginning.
    threads : int
        CPU threads; a model below 64 MB runs on one, for waiting for another thread in every layer
        costs it more than the other's help, and a great deal more on a busy machine.
    sequences : int
        Sequences that can live at the same time.
    kv : {"f16", "f32"}
        Type of the KV cache; f32 is for comparisons in full precision.

    Raises
    ------
    BundleError
        The file cannot be loaded, or holds no tokenizer.
    MissingExtraError
        llama-cpp-python is not installed.
    """

    provider = "llama.cpp CPU"

    def __init__(
        self, path: Path, *, context: int, threads: int, sequences: int = 2, kv: KVType = "f16"
    ) -> None:
        self._api = api = llama_cpp()
        self._context: Any = None
        _log.clear()
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model: Any = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise BundleError(
                f"{path}: llama.cpp cannot load it ({'; '.join(_log) or 'no reason'})"
            )
        self.context = context
        try:
            self._open(path, threads, sequences, kv)
        except BundleError:
            self.close()
            raise

    def _open(self, path: Path, threads: int, sequences: int, kv: KVType) -> None:
        api = self._api
        self._vocabulary = api.llama_model_get_vocab(self._model)
        if api.llama_vocab_type(self._vocabulary) == _NO_VOCABULARY:
            raise BundleError(f"{path} holds no tokenizer; export the bundle again")
        self.width = int(api.llama_model_n_embd_inp(self._model))
        self.vocabulary_size = int(api.llama_vocab_n_tokens(self._vocabulary))
        self._context = self._open_context(path, threads, sequences, kv)
        self._memory = api.llama_get_memory(self._context)
        self._batches = [_Batch(api, sequence, self.context) for sequence in range(sequences)]

    def _open_context(self, path: Path, threads: int, sequences: int, kv: KVType) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = self.context
        parameters.n_batch = self.context
        parameters.n_ubatch = min(self.context, _UBATCH)
        parameters.n_outputs_max = sequences  # llama.cpp reserves at least one each
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        small = self._api.llama_model_size(self._model) < _SMALL_BYTES
        parameters.n_threads = parameters.n_threads_batch = 1 if small else threads
        parameters.type_k = parameters.type_v = _GGML_TYPES[kv]
        if kv == "f32":
            # flash attention on the CPU rounds inside, by 1e-3 of the largest logit
            parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.offload_kqv = parameters.op_offload = False
        context = self._api.llama_init_from_model(self._model, parameters)
        if not context:
            raise BundleError(
                f"{path}: llama.cpp has no memory for {self.context} tokens ({'; '.join(_log)})"
            )
        return context

    def close(self) -> None:
        """Free model and cache; may be called twice."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def metadata(self, key: str) -> str | None:
        """A value of the GGUF's metadata as text, None if it is not there."""
        buffer = ctypes.create_string_buffer(1024)
        length = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, 1024)
        return buffer.value.decode(errors="replace") if length >= 0 else None

    @property
    def begin(self) -> int:
        """Id of the token that begins a text."""
        return int(self._api.llama_vocab_bos(self._vocabulary))

    def ends(self, token: int) -> bool:
        """Whether a token ends a text."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def tokenize(self, text: str) -> list[int]:
        """Token ids; special tokens in the text are recognised, none is added."""
        if not text:
            return []
        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, False, True)
        if count < 0:
            raise InputError(f"llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """Bytes of a token; special tokens have none. A character may span several tokens."""
        buffer = ctypes.create_string_buffer(256)
        length = self._api.llama_token_to_piece(self._vocabulary, token, buffer, 256, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._api.llama_token_to_piece(
                self._vocabulary, token, buffer, -length, 0, False
            )
        return buffer.raw[:length]

    def add_tokens(self, tokens: Sequence[int], *, sequence: int, position: int) -> None:
        """Append tokens to a sequence; the logits after the last one can then be read."""
        self._check_room(len(tokens), position)
        self._decode(self._batches[sequence].of_tokens(tokens, position))

    def add_embeddings(self, rows: NDArray[np.float32], *, sequence: int, position: int) -> None:
        """Append rows of embeddings, (n, width) float32, to a sequence as if they were tokens."""
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise InputError(
                f"the prefix must be (n, {self.width}), as wide as the language model; "
                f"got {rows.shape}"
            )
        self._check_room(len(rows), position)
        self._decode(self._batches[sequence].of_rows(np.ascontiguousarray(rows, "f4"), position))

    def _check_room(self, count: int, position: int) -> None:
        if count < 1 or position + count > self.context:
            raise InputError(
                f"{count} tokens at position {position} do not fit into the language model's "
                f"context of {self.context}"
            )

    def _decode(self, batch: Any) -> None:
        self._check_open()
        code = self._api.llama_decode(self._context, batch)
        if code != 0:
            raise ScansideError(f"llama.cpp failed with code {code} ({'; '.join(_log)})")

    def _check_open(self) -> None:
        if not self._context:
            raise InputError("the language model is closed; open the bundle again")

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,) float32 logits after the last token; the next call overwrites them."""
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocabulary_size,))

    def fork(self, source: int, target: int) -> None:
        """Make a sequence a copy of another one, sharing what is computed."""
        self.truncate(target, 0)
        self._api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def truncate(self, sequence: int, position: int) -> None:
        """Forget a sequence from a position on."""
        self._check_open()
        self._api.llama_memory_seq_rm(self._memory, sequence, position, -1)


class _Batch:
    """Buffers of one sequence's batches, allocated once."""

    def __init__(self, api: Any, sequence: int, size: int) -> None:
        self._struct = api.llama_batch()
        self._id = ctypes.c_int32(sequence)
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = np.empty(size, np.int32)
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._ids = (ctypes.POINTER(ctypes.c_int32) * size)(*[ctypes.pointer(self._id)] * size)
        self._wants_logits = (ctypes.c_int8 * size)()
        self._floats: Any = ctypes.POINTER(ctypes.c_float)
        self._struct.pos = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._struct.n_seq_id = self._counts
        self._struct.seq_id = self._ids
        self._struct.logits = self._wants_logits

    def of_tokens(self, tokens: Sequence[int], position: int) -> Any:
        self._tokens[: len(tokens)] = tokens
        struct = self._filled(len(tokens), position)
        struct.token, struct.embd = self._tokens, None
        self._wants_logits[len(tokens) - 1] = 1
        return struct

    def of_rows(self, rows: NDArray[np.float32], position: int) -> Any:
        self._rows = rows  # alive until the next call
        struct = self._filled(len(rows), position)
        struct.token, struct.embd = None, rows.ctypes.data_as(self._floats)
        return struct

    def _filled(self, count: int, position: int) -> Any:
        self._positions[:count] = np.arange(position, position + count)
        ctypes.memset(self._wants_logits, 0, count)
        self._struct.n_tokens = count
        return self._struct
