"""Bytes of tokens to text that can be shown: whole characters, no stop string, no outer space."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence


class TextStream:
    """Text that grows token by token.

    What could still turn out to be part of a stop string, half a character, or trailing space is
    held back until the next token decides.

    Parameters
    ----------
    stop : sequence of str
        Strings that end the text; they are not shown.
    whole_words : bool
        Hold back the last word too, so that the text can be cut behind any word that was shown.

    Examples
    --------
    >>> stream = TextStream(stop=["<human>"])
    >>> [stream.push(piece) for piece in (b" caf", b"\\xc3", b"\\xa9 <hu", b"man>")], stream.stopped
    (['caf', '', 'é', ''], True)
    """

    def __init__(self, stop: Sequence[str] = (), *, whole_words: bool = False) -> None:
        self.text = ""
        """Everything shown so far."""
        self.stopped = False
        """Whether a stop string has come."""
        self._stop = [s for s in stop if s]
        self._whole_words = whole_words
        self._bytes = b""
        """Of a character that is not whole yet."""
        self._held = ""

    def push(self, piece: bytes) -> str:
        """The text that a further token makes showable."""
        held = self._hold(self._decoded(piece))
        if self.stopped:
            return self._show(len(held))
        end = len(held) - self._undecided(held) if self._stop else len(held)
        return self._show(_words_end(held[:end]) if self._whole_words else end)

    def finish(self) -> str:
        """What is still held back, without trailing space."""
        return self._show(len(self._hold(self._decoded(b"", final=True))))

    def cut(self) -> str:
        """What is still held back of whole words; the text ends in the middle."""
        return self._show(_words_end(self._held))

    def _decoded(self, piece: bytes, *, final: bool = False) -> str:
        """The characters that a piece makes whole."""
        # what codecs.getincrementaldecoder does, in one call instead of several for each token
        piece = self._bytes + piece
        text, used = codecs.utf_8_decode(piece, "replace", final)
        self._bytes = piece[used:]
        return text

    def _hold(self, more: str) -> str:
        """Everything that is not shown, up to a stop string if one has come."""
        if not self.stopped:
            self._held += more
            if self._stop:
                self._look_for_stop()
        if not self.text:
            self._held = self._held.lstrip()
        return self._held

    def _look_for_stop(self) -> None:
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, self._held[: min(found)]

    def _show(self, end: int) -> str:
        ready = self._held[:end].rstrip()
        self._held = "" if self.stopped else self._held[len(ready) :]
        self.text += ready
        return ready

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        ends = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        return max(ends, default=0)


def _words_end(text: str) -> int:
    """Where the last word that is certainly whole ends; a longer text might go on with the rest."""
    end = len(text)
    while end and _goes_on(text[end - 1]):
        end -= 1
    return end


def _goes_on(character: str) -> bool:
    """Whether a word may continue behind a character; an ideograph is a word of its own."""
    if unicodedata.east_asian_width(character) in "WF":
        return False
    return unicodedata.category(character)[0] in "LMN" or character in "'’-_"
