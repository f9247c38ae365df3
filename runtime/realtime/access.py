"""Who may subscribe over HTTP: a token, TLS, and no page of somebody else in a browser.

On this machine neither is required, but a browser sends whatever page it shows to us: without a
token a request must name this machine as its host and come from no other page. Beyond this machine
token and TLS are required.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import InputError
from .address import Address

TOKEN_VARIABLE = "SCANSIDE_TOKEN"
LEAST_TOKEN = 16
"""Characters; shorter ones can be guessed."""
_MOST_TOKEN = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server asks of its subscribers."""

    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    """PEM, the chain included."""
    key: Path | None = None
    """PEM, not encrypted."""

    def tls(self) -> ssl.SSLContext | None:
        """A server's context, None without a certificate.

        Raises
        ------
        InputError
            One of the two files is missing, cannot be read, or does not fit the other.
        """
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            lacking = "--tls-key" if self.key is None else "--tls-certificate"
            raise InputError(f"TLS needs a certificate and its key; give {lacking} as well")
        for path in (self.certificate, self.key):
            if not (path.is_file() and os.access(path, os.R_OK)):
                raise InputError(f"{path} cannot be read; name a PEM file")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # the empty password keeps it from asking for one at the terminal
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, OSError, ValueError) as exc:
            reason = getattr(exc, "reason", None) or exc
            raise InputError(
                f"{self.certificate} and {self.key} are no certificate and its key, PEM and not "
                f"encrypted ({reason})"
            ) from exc
        return context

    def refusal(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Why a request is refused, None if it is not.

        Parameters
        ----------
        headers, query : mapping
            Of the request. A token comes as `Authorization: Bearer TOKEN`, or as `token` in the
            query, for browsers cannot set a header for server-sent events and WebSockets.
        """
        if self.token is None:
            return _foreign(headers)
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else query.get("token", "")
        if not given:
            return "no token"
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            return "wrong token"
        return None


def read_token(path: Path | None) -> str | None:
    """The token of a file, or else of the environment's SCANSIDE_TOKEN; None if neither is there.

    Raises
    ------
    InputError
        A file that cannot be read, or a token that can be guessed or is none.
    """
    if path is None:
        token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if token is None:
            return None
    else:
        try:
            token, where = path.read_text("utf-8"), str(path)
        except (OSError, UnicodeDecodeError) as exc:
            raise InputError(f"{path} cannot be read as the file of a token: {exc}") from exc
    token = token.strip()
    good = token.isascii() and token.isprintable() and " " not in token
    if not (good and LEAST_TOKEN <= len(token) <= _MOST_TOKEN):
        raise InputError(
            f"{where} must hold a token of {LEAST_TOKEN} to {_MOST_TOKEN} ASCII characters without "
            f"spaces; it holds {len(token)} (openssl rand -hex 32 makes one)"
        )
    return token


def check_access(access: Access, address: Address, what: str) -> None:
    """Refuse to serve beyond this machine without token and TLS; an InputError says what lacks."""
    if access.tls() is None and not address.local:
        raise InputError(
            f"'sink' {what} is beyond this machine: give --tls-certificate and --tls-key"
        )
    if access.token is None and not address.local:
        raise InputError(
            f"'sink' {what} is beyond this machine: give --token-file, or set {TOKEN_VARIABLE}"
        )


def _foreign(headers: Mapping[str, str]) -> str | None:
    host, origin = headers.get("Host", ""), headers.get("Origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        local = name == "localhost" or ipaddress.ip_address(name).is_loopback
        same = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        return "foreign host"
    if not local:
        return "foreign host"
    return None if same else "foreign page"
