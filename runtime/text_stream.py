"""Bytes of tokens to text that can be shown: whole characters, no stop string, no outer space."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Text that grows token by token.

    What could still turn out to be part of a stop string, half a character, or trailing space is
    held back until the next token decides.

    Examples
    --------
    >>> stream = TextStream(stop=["<human>"])
    >>> [stream.push(piece) for piece in (b" caf", b"\\xc3", b"\\xa9 <hu", b"man>")], stream.stopped
    (['caf', '', 'é', ''], True)
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """Everything shown so far."""
        self.stopped = False
        """Whether a stop string has come."""
        self._stop = [s for s in stop if s]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that a further token makes showable."""
        return self._show(self._decoder.decode(piece), last=False)

    def finish(self) -> str:
        """What is still held back, without trailing space."""
        return self._show(self._decoder.decode(b"", final=True), last=True)

    def _show(self, more: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + more
        if not self.text:
            held = held.lstrip()
        found = [at for at in map(held.find, self._stop) if at >= 0]
        if found:
            self.stopped, held, last = True, held[: min(found)], True
        ready = held if last else held[: len(held) - self._undecided(held)]
        ready = ready.rstrip()
        self._held = held[len(ready) :]
        self.text += ready
        return ready

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        ends = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        return max(ends, default=0)
