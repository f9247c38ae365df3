"""What waits for one subscriber: bounded, in order, for one event loop."""

from __future__ import annotations

import asyncio
from collections import deque

_MOST = 512
"""Messages."""
_MOST_BYTES = 8 << 20
"""Pictures included."""


class Mailbox:
    """A queue that says when it is full, instead of waiting or giving up its oldest.

    Parameters
    ----------
    pictures : bool
        Whether its owner wants pictures.
    """

    def __init__(self, *, pictures: bool) -> None:
        self.pictures = pictures
        self._waiting: deque[str | bytes] = deque()
        self._size = 0
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, item: str | bytes) -> bool:
        """Add a message or a picture; False if there is no room for it."""
        if len(self._waiting) >= _MOST or self._size + len(item) > _MOST_BYTES:
            return False
        self._waiting.append(item)
        self._size += len(item)
        self._changed.set()
        return True

    def close(self) -> None:
        """Nothing more will come; what waits can still be taken."""
        self._closed = True
        self._changed.set()

    async def get(self) -> str | bytes | None:
        """The next one, as soon as there is one; None once it is closed and empty."""
        while not self._waiting:
            if self._closed:
                return None
            self._changed.clear()
            await self._changed.wait()
        item = self._waiting.popleft()
        self._size -= len(item)
        return item
