"""Reading from a connection: never more than was said, never for ever, never past a closing."""

from __future__ import annotations

import socket
import time

from .bell import Bell, Silent


class TooMuch(Exception):
    """More came than was allowed."""


class Wire:
    """One connection, read by one thread.

    Parameters
    ----------
    connection : socket
        Closed by whoever opened it.
    bell : Bell
        Ends every wait with `Stopped`.
    """

    def __init__(self, connection: socket.socket, bell: Bell) -> None:
        # a peer that dies without a word is found out in the end
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection = connection
        self._bell = bell

    def until_nul(self, most: int, timeout_s: float, *, lenient: bool = False) -> bytes:
        """What comes before a NUL or the end; whatever follows stays unread.

        Parameters
        ----------
        most : int
            Bytes.
        timeout_s : float
            For all of it.
        lenient : bool
            Whether silence ends it as well, if anything came.

        Raises
        ------
        TooMuch, Silent, OSError
        """
        raw, deadline_s = bytearray(), time.monotonic() + timeout_s
        while len(raw) <= most:
            try:
                left_s = max(deadline_s - time.monotonic(), 0.0)
                self._bell.wait(self._connection, timeout_s=left_s)
            except Silent:
                if raw and lenient:
                    return bytes(raw)
                raise
            ahead = self._connection.recv(most + 1 - len(raw), socket.MSG_PEEK)
            end = ahead.find(b"\0")
            came = self._connection.recv(end + 1 if end >= 0 else len(ahead) or 1)
            raw += came
            if end >= 0 or not ahead:
                return bytes(raw[:-1] if end >= 0 else raw)
        raise TooMuch(f"more than {most} bytes where a NUL should be")

    def fill(self, into: memoryview, patience_s: float, begin_s: float | None) -> int:
        """Fill a buffer.

        Parameters
        ----------
        into : memoryview
            Of bytes.
        patience_s : float
            How long a wait may be once something came.
        begin_s : float, optional
            And before; for ever if None.

        Returns
        -------
        count : int
            Bytes that came; fewer than wanted if the peer hung up or fell silent.

        Raises
        ------
        OSError
            The connection broke.
        """
        count, wait_s = 0, begin_s
        while count < len(into):
            try:
                self._bell.wait(self._connection, timeout_s=wait_s)
            except Silent:
                return count
            came = self._connection.recv_into(into[count:])
            if not came:
                return count
            count, wait_s = count + came, patience_s
        return count
