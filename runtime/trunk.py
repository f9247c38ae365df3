"""One volume's prefix in the KV cache, computed once, and the texts that grow from it.

Sequence 0 of the cache is the trunk, `[BOS] before_prefix | prefix`; its head is the same for every
volume and is computed when the cache opens. Every other sequence is a branch: a copy of the trunk,
which costs no computation, and the tokens of a text behind it.

On a GPU the prefix and the first text's beginning are one pass: each pass reads all weights, and
two of different lengths in turn are planned anew each time. A CPU gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .llama import LlamaModel
from .llama_cache import LlamaCache

_TRUNK = 0


class Trunk:
    """What all texts about a volume begin with.

    Parameters
    ----------
    cache : LlamaCache
        Its first sequence is the trunk, the others are branches.
    head : list of int
        Token ids before the prefix.
    shape : (M, d)
        Rows and width of a prefix.
    joined : bool
        The prefix waits for the first text about it, and both are one pass; the cache's sequences
        share their memory. That text's numbers may then be rounded in other places than those of
        the same text asked as the second one.
    """

    def __init__(
        self,
        cache: LlamaCache,
        head: list[int],
        shape: tuple[int, int],
        *,
        joined: bool = False,
    ) -> None:
        self.cache = cache
        self._head = head
        self._shape = shape
        self._joined = joined
        self._waiting: NDArray[np.float32] | None = None
        """A prefix that is not in the cache yet."""
        self.ready = False
        """Whether there is a volume to talk about."""
        self.branches = tuple(Branch(self, n) for n in range(1, cache.sequences))
        if head:
            cache.add_tokens(head, sequence=_TRUNK, position=0)

    def __len__(self) -> int:
        return len(self._head) + self._shape[0]

    def attend(self, prefix: NDArray[np.float32]) -> None:
        """Take a volume's prefix, (M, d) float32; all branches are gone with the last one's.

        Raises
        ------
        InputError
            A prefix of another shape, or one that is not finite.
        """
        if prefix.shape != self._shape or not np.isfinite(prefix).all():
            raise InputError(
                f"'prefix' must be finite and of shape {self._shape}; got {prefix.shape}"
            )
        self.ready = False
        # branches share the trunk's cells: freed with them, the next trunk lies where the last one
        # did, and no answer depends, not even in its last bit, on the volume before
        for branch in self.branches:
            branch.clear()
        self.cache.truncate(_TRUNK, len(self._head))
        if self._joined:
            self._waiting = prefix.astype(np.float32)  # a copy
        else:
            self.cache.add_embeddings(prefix, sequence=_TRUNK, position=len(self._head))
        self.ready = True

    def begin(self, sequence: int, tokens: Sequence[int]) -> None:
        """Fork into a branch's sequence and add a text's first tokens.

        Raises
        ------
        InputError
            There is no volume to talk about.
        """
        if not self.ready:
            raise InputError("there is no volume to talk about; attend to a prefix first")
        if self._waiting is None:
            self.cache.fork(_TRUNK, sequence)
            self.cache.add_tokens(tokens, sequence=sequence, position=len(self))
            return
        rows = np.concatenate([self._waiting, self.cache.model.token_rows.of(tokens)])
        head = len(self._head)
        self.cache.truncate(_TRUNK, head)  # where a pass failed before
        self.cache.fork(_TRUNK, sequence)
        shared = len(self._waiting)
        self.cache.add_forked(rows, shared=shared, source=_TRUNK, sequence=sequence, position=head)
        self._waiting = None


class Branch:
    """One text behind the trunk; made by `Trunk`."""

    def __init__(self, trunk: Trunk, sequence: int) -> None:
        self._trunk = trunk
        self._cache = trunk.cache
        self._sequence = sequence
        self._first = len(trunk)
        self.most = trunk.cache.context - self._first
        """Tokens that fit behind the trunk."""
        self.held: list[int] = []
        """Tokens behind the trunk."""
        self.edition = 0
        """Rises whenever the text begins anew, or goes on in another way."""

    @property
    def model(self) -> LlamaModel:
        """The weights and the vocabulary."""
        return self._cache.model

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.most - len(self.held)

    def clear(self) -> None:
        """Forget the text and the branch's share of the trunk."""
        self.edition += 1
        self.held = []
        self._cache.truncate(self._sequence, 0)

    def begin(self, tokens: Sequence[int]) -> None:
        """Fork the trunk and add tokens."""
        self._begin(tokens, 0)

    def rewrite(self, tokens: Sequence[int]) -> None:
        """Make these the text; what it already begins with is not computed again."""
        same = 0
        # the last one is always computed, for its logits
        while same < min(len(self.held), len(tokens) - 1) and self.held[same] == tokens[same]:
            same += 1
        self._begin(tokens, same)

    def append(self, token: int) -> None:
        """Add a token."""
        position = self._first + len(self.held)
        self._cache.add_token(token, sequence=self._sequence, position=position)
        self.held.append(token)

    def logits(self) -> NDArray[np.float32]:
        """(vocabulary,) float32 after the token added last, if nothing else was computed since."""
        return self._cache.logits()

    def _begin(self, tokens: Sequence[int], kept: int) -> None:
        self.edition += 1
        self.held = self.held[:kept]
        if kept:
            position = self._first + kept
            self._cache.truncate(self._sequence, position)
            self._cache.add_tokens(tokens[kept:], sequence=self._sequence, position=position)
        else:
            self._trunk.begin(self._sequence, tokens)
        self.held += tokens[kept:]
