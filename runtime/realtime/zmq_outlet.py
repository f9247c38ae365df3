"""Answers over ZeroMQ: two frames a message, what it is (`answer`, `volume`, ...) and the JSON.

A subscriber (SUB) asks for all with an empty prefix, or for one kind by its name. To one that comes
late the state of the run goes first, as a `state` message that whoever is there already gets again.
ZeroMQ gives up messages for a subscriber that does not read, and does not say so: `seq` does.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import zmq

from .address import Address
from .latest import Latest
from .listening import cannot_listen

TOPICS = ("state", "volume", "preview", "token", "answer", "fault", "end")
_WAITING = 1000
"""Messages that are kept for a subscriber."""
_MOST_BYTES = 64
"""Of what a subscriber may say."""
_ASKED = 100
"""Subscriptions that are looked at between two messages."""
_LINGER_MS = 500
"""How long unsent messages may hold up the end."""


class ZmqOutlet:
    """A publisher that knows when somebody subscribes.

    Parameters
    ----------
    address : Address
        Where to listen.

    Raises
    ------
    InputError
        The address is in use, or not of this machine.
    """

    def __init__(self, address: Address) -> None:
        self._latest = Latest()
        self._subscribed = self._refused = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.XPUB)
        # subscriptions come to us first: unknown ones are not kept, however many are asked for
        options = {
            zmq.XPUB_MANUAL: 1,
            zmq.XPUB_VERBOSE: 1,
            zmq.SNDHWM: _WAITING,
            zmq.RCVHWM: _ASKED,
            zmq.MAXMSGSIZE: _MOST_BYTES,
            zmq.LINGER: _LINGER_MS,
            zmq.IPV6: int(":" in address.host),
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(f"tcp://{address}")
        except zmq.ZMQError as exc:
            self.close()
            raise cannot_listen(address, "'sink' zmq", exc.errno) from exc

    def send(self, message: str) -> None:
        """Publish one message, after the state if somebody is new."""
        if self._heed():
            self._publish("state", self._latest.as_json())
        content: dict[str, Any] = json.loads(message)
        self._latest.take(content)
        self._publish(str(content.get("event")), message)

    def counts(self) -> dict[str, int]:
        """Subscriptions, and what else was said to us."""
        found = {"subscriptions": self._subscribed, "refused": self._refused}
        return {what: count for what, count in found.items() if count}

    def close(self) -> None:
        """Close, once unsent messages have had time to leave."""
        self._socket.close()
        self._context.term()

    def _publish(self, topic: str, message: str) -> None:
        self._socket.send_multipart([topic.encode(), message.encode()])

    def _heed(self) -> bool:
        """Take in what subscribers ask for; whether one is new."""
        new = False
        for _ in range(_ASKED):
            try:
                said = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            sign, asked = said[0][:1], said[0][1:]
            known = any(topic.encode().startswith(asked) for topic in TOPICS)
            if sign == b"\x01" and known:
                self._socket.setsockopt(zmq.SUBSCRIBE, asked)
                self._subscribed += 1
                new = True
            elif sign == b"\x00" and known:
                with contextlib.suppress(zmq.ZMQError):  # it has gone meanwhile
                    self._socket.setsockopt(zmq.UNSUBSCRIBE, asked)
            else:
                self._refused += 1
        return new
