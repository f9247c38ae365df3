"""Ends the waiting of a thread that reads from sockets."""

from __future__ import annotations

import select
import socket


class Stopped(Exception):
    """The source is being closed."""


class Silent(Exception):
    """Nothing came in time."""


class Bell:
    """Wakes a thread that waits for a socket, so that closing waits for nobody."""

    def __init__(self) -> None:
        self._ringer, self._heard = socket.socketpair()

    def fileno(self) -> int:
        """For a poller."""
        return self._heard.fileno()

    def ring(self) -> None:
        """End every wait, now and from now on."""
        self._ringer.send(b"!")

    def wait(self, *wanted: socket.socket, timeout_s: float | None) -> socket.socket:
        """Wait until one of some sockets can be read; the first of them that can.

        Raises
        ------
        Stopped
            The bell was rung.
        Silent
            None within `timeout_s`.
        """
        ready, _, _ = select.select([*wanted, self._heard], [], [], timeout_s)
        if self._heard in ready:
            raise Stopped
        if not ready:
            raise Silent
        return ready[0]

    def close(self) -> None:
        """Once nobody waits any more."""
        self._ringer.close()
        self._heard.close()
