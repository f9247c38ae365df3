"""Answers over WebSocket and server-sent events: the feedback server in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path

from .access import Access, check_access
from .address import Address
from .announced import Announced
from .door import open_door
from .feedback_server import FeedbackServer

_PATIENCE_S = 5.0
"""How long the server's thread may take for one message."""


class WsOutlet:
    """Serves until it is closed.

    Parameters
    ----------
    address : Address
        Where to listen; port 0 takes any that is free.
    access : Access
        Who may subscribe.
    folder : Path, optional
        Of the run, for its pictures.

    Raises
    ------
    InputError
        An address that is in use; beyond this machine without token and TLS.
    """

    def __init__(
        self, address: Address, access: Access | None = None, folder: Path | None = None
    ) -> None:
        access = access or Access()
        check_access(access, address, f"ws:{address}")
        tls = access.tls()
        listening = open_door(address)
        self.port: int = listening.getsockname()[1]
        self._announced = Announced(folder)
        self._counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._unexpected)

        async def open_() -> FeedbackServer:
            return FeedbackServer(listening, access, tls, self._announced, self._counts)

        self._server = self._loop.run_until_complete(open_())
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"ws-{self.port}", daemon=True
        )
        self._thread.start()

    def send(self, message: str) -> None:
        """Put a message and its pictures into the mailbox of each subscriber."""
        content = json.loads(message)
        pictures = [picture for _, picture in self._announced.take(content)]
        sending = self._server.publish(message, content, pictures)
        asyncio.run_coroutine_threadsafe(sending, self._loop).result(_PATIENCE_S)

    def counts(self) -> dict[str, int]:
        """Subscribers, and who was sent away or dropped and why."""
        return dict(self._counts)

    def close(self) -> None:
        """Let subscribers take what waits for them, then end the server."""
        try:
            closing = asyncio.run_coroutine_threadsafe(self._server.close(), self._loop)
            closing.result(_PATIENCE_S)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_PATIENCE_S)
            if not self._loop.is_running():
                self._server.hang_up()
                self._loop.close()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        del loop, context
        self._counts["errors"] += 1
