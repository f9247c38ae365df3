"""Keys for ZeroMQ's CURVE from one token, which both ends know and nobody between them.

CURVE encrypts and authenticates what PAIR sockets exchange (http://curvezmq.org). Its two key pairs
are digests of the token, so that a token is all that needs to be carried to the other machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """Two key pairs, in ZeroMQ's text form (Z85, 40 bytes)."""

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def of(cls, token: str) -> CurveKeys:
        """The keys that belong to a token.

        A program in another language does the same: a secret key is BLAKE2b of the token's bytes,
        32 bytes long, personalised with `scanside-server` or `scanside-client`.
        """
        import zmq
        from zmq.utils import z85

        secrets = [
            z85.encode(hashlib.blake2b(token.encode(), digest_size=32, person=person).digest())
            for person in (b"scanside-server", b"scanside-client")
        ]
        publics = [zmq.curve_public(secret) for secret in secrets]
        return cls(publics[0], secrets[0], publics[1], secrets[1])

    def protect_server(self, socket: Any) -> None:
        """Let only clients in that have the token; whom, ZAP must still say."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self.server_public, self.server_secret

    def protect_client(self, socket: Any) -> None:
        """Talk only to a server that has the token."""
        socket.curve_serverkey = self.server_public
        socket.curve_publickey, socket.curve_secretkey = self.client_public, self.client_secret
