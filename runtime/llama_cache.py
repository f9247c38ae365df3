"""A KV cache of llama.cpp, and everything that is computed into it, every call guarded.

llama.cpp ends the process on a batch that is too long or rows of another width, and reads behind a
null pointer's back when no logits are there. All of that is an error here instead.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, InputError, ScansideError
from .llama import LlamaModel, last_words, logits_address

KVType: TypeAlias = Literal["f16", "f32"]
_GGML_TYPES: dict[KVType, int] = {"f32": 0, "f16": 1}
_MOST_CELLS = 2**31 - 1
_UBATCH = 512
_SMALL_BYTES = 64 << 20


class LlamaCache:
    """One KV cache over a model's weights, shared by a few sequences.

    Parameters
    ----------
    model : LlamaModel
        Its weights; several caches may use them, one at a time.
    context : int
        Most tokens of one sequence.
    threads : int
        CPU threads; a model below 64 MB runs on one, for waiting for another thread in every layer
        costs it more than the other's help, and a great deal more on a busy machine.
    sequences : int
        Sequences that can live at the same time.
    apart : bool
        Each sequence has memory of its own: a fork then copies, and no text depends, not even in
        the last bit of a logit, on where another one lies. Else all of them together have
        `context` tokens, a beginning that a fork shares counted once, and a fork is free.
    kv : {"f16", "f32"}
        Type of the keys and values; f32 is for comparisons in full precision.

    Raises
    ------
    BundleError
        There is not enough memory, or no number for that many tokens.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        context: int,
        threads: int,
        sequences: int = 2,
        apart: bool = False,
        kv: KVType = "f16",
    ) -> None:
        self.model = model
        self.context = context
        self.sequences = sequences
        self._api = model.api
        cells = context * sequences if apart else context
        if cells > _MOST_CELLS:
            raise BundleError(
                f"{model.path}: a context of {context} tokens is more than llama.cpp can count"
            )
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = cells
        parameters.n_batch = context
        parameters.n_ubatch = min(context, _UBATCH)
        parameters.n_outputs_max = sequences  # llama.cpp reserves at least one each
        parameters.n_seq_max = sequences
        parameters.kv_unified = not apart
        small = model.size_bytes < _SMALL_BYTES
        parameters.n_threads = parameters.n_threads_batch = 1 if small else threads
        parameters.type_k = parameters.type_v = _GGML_TYPES[kv]
        if kv == "f32":
            # flash attention on the CPU rounds inside, by 1e-3 of the largest logit
            parameters.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.offload_kqv = parameters.op_offload = model.on_gpu
        self._context: Any = self._api.llama_init_from_model(model.pointer, parameters)
        if not self._context:
            raise BundleError(
                f"{model.path}: llama.cpp has no memory for {cells} tokens ({last_words()})"
            )
        self._free = weakref.finalize(self, self._api.llama_free, self._context)
        self._free.atexit = False
        model.caches.add(self)
        self._memory = self._api.llama_get_memory(self._context)
        self._logits_address = logits_address()
        self._logits_at = 0
        self._logits = np.empty(0, np.float32)
        self._batches = [_Batch(self._api, number, context) for number in range(sequences)]

    def close(self) -> None:
        """Free the cache; may be called twice."""
        self._free()
        self._context = None

    def add_tokens(self, tokens: Sequence[int], *, sequence: int, position: int) -> None:
        """Append tokens to a sequence; the logits after the last one can then be read."""
        self._check_room(len(tokens), position)
        self._decode(self._batches[sequence].of_tokens(tokens, position))

    def add_token(self, token: int, *, sequence: int, position: int) -> None:
        """`add_tokens` of one: what a text is mostly made of."""
        self._check_room(1, position)
        self._decode(self._batches[sequence].of_token(token, position))

    def add_embeddings(self, rows: NDArray[np.float32], *, sequence: int, position: int) -> None:
        """Append rows of embeddings, (n, width) float32, to a sequence as if they were tokens."""
        self._check_rows(rows, position)
        self._decode(self._batches[sequence].of_rows(np.ascontiguousarray(rows, "f4"), position))

    def add_forked(
        self,
        rows: NDArray[np.float32],
        *,
        shared: int,
        source: int,
        sequence: int,
        position: int,
    ) -> None:
        """Append rows of embeddings in one pass: the first `shared` of them to both sequences, the
        others to `sequence` alone; the logits after the last one can then be read.

        Parameters
        ----------
        rows : (n, width) float32
        shared : int
        source, sequence : int
            Both hold the same up to `position`, in memory that they share.
        position : int
        """
        self._check_rows(rows, position)
        if not 0 < shared < len(rows):
            raise InputError(f"'shared' must be from 1 to {len(rows) - 1} rows; got {shared}")
        self._decode(self._batches[sequence].of_fork(rows, shared, source, position))

    def _check_rows(self, rows: NDArray[np.float32], position: int) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.model.width:
            raise InputError(
                f"the prefix must be (n, {self.model.width}), as wide as the language model; "
                f"got {rows.shape}"
            )
        self._check_room(len(rows), position)

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
            raise ScansideError(f"llama.cpp failed with code {code} ({last_words()})")

    def _check_open(self) -> None:
        if not self._context:
            raise InputError("the language model is closed; open the bundle again")

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,) float32 logits after the last token; the next call overwrites them."""
        self._check_open()
        address = self._logits_address(self._context, -1)
        if not address:
            raise ScansideError("llama.cpp has no logits; add tokens before reading them")
        if address != self._logits_at:  # seldom; making a view costs as much as choosing from it
            self._logits_at = address
            numbers = (ctypes.c_float * self.model.vocabulary_size).from_address(address)
            self._logits = np.ctypeslib.as_array(numbers)
        return self._logits

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
        self._api = api
        self._id = ctypes.c_int32(sequence)
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = np.empty(size, np.int32)
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._ids = (ctypes.POINTER(ctypes.c_int32) * size)(*[ctypes.pointer(self._id)] * size)
        self._wants_logits = (ctypes.c_int8 * size)()
        self._floats: Any = ctypes.POINTER(ctypes.c_float)
        positions = self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._struct = self._made(positions, self._wants_logits)
        # one token has a struct of its own, in which only two numbers change
        self._token, self._position = ctypes.c_int32(), ctypes.c_int32()
        self._single = self._made(
            ctypes.pointer(self._position), (ctypes.c_int8 * 1)(1), ctypes.pointer(self._token)
        )
        self._single.n_tokens = 1

    def _made(self, positions: Any, wants_logits: Any, tokens: Any = None) -> Any:
        struct = self._api.llama_batch()
        struct.n_seq_id, struct.seq_id = self._counts, self._ids
        struct.pos, struct.logits, struct.token = positions, wants_logits, tokens
        return struct

    def of_token(self, token: int, position: int) -> Any:
        self._token.value, self._position.value = token, position
        return self._single

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

    def of_fork(self, rows: NDArray[np.float32], shared: int, source: int, position: int) -> Any:
        struct = self.of_rows(np.ascontiguousarray(rows, "f4"), position)
        own, size = len(rows) - shared, len(rows)
        both = (ctypes.c_int32 * 2)(source, self._id.value)
        pointers = [ctypes.cast(both, self._ids._type_)] * shared + list(self._ids[:own])
        fork = self._api.llama_batch()
        fork.n_tokens, fork.embd = size, struct.embd
        fork.pos, fork.logits = struct.pos, struct.logits
        fork.n_seq_id = (ctypes.c_int32 * size)(*[2] * shared, *[1] * own)
        fork.seq_id = (self._ids._type_ * size)(*pointers)
        self._wants_logits[size - 1] = 1
        return fork

    def _filled(self, count: int, position: int) -> Any:
        self._positions[:count] = np.arange(position, position + count)
        ctypes.memset(self._wants_logits, 0, count)
        self._struct.n_tokens = count
        return self._struct
