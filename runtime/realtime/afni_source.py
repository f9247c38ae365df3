"""Volumes over AFNI's real-time protocol: what is sent to AFNI's plug-in can be sent here.

A sender (Dimon, rtfeedme, a program of the scanner) opens the control port, says there on which
port its data will come, and hangs up. Then it opens that port, sends the prolog
(`afni_prolog.py`), and after it nothing but images until it hangs up. No image bears a number: a
volume's number is its place in the stream, so one that the sender leaves out cannot be noticed.
Each connection is a series of its own, as each is a data set in AFNI.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

import numpy as np

from .address import Address
from .afni_prolog import MARKER, MAX_PROLOG_BYTES, Prolog, read_prolog
from .bell import Bell, Silent, Stopped
from .frame import Frame, series_identity
from .listening import Peers, listen, refuse_open
from .listening_source import ListeningSource
from .source import FaultKind, UnreadableVolume
from .wire import TooMuch, Wire

_MAX_CONTROL_BYTES = 1024
_CONTROL_S = 3.0
"""In which a sender says where its data will come."""
_CONNECT_S = 30.0
"""And connects there."""
_PROLOG_S = 60.0
"""And says what its data will be."""


class AfniSource(ListeningSource):
    """Frames of AFNI's real-time stream.

    Parameters
    ----------
    address : Address
        Of the control port; AFNI's own is 7954. The data port is the one below.
    pace_s : float
        Seconds between two volumes.
    peers : Peers
        Who may send besides this machine.
    patience_trs : float
        How long a volume may stay incomplete before the connection is given up.
    clock : callable
        Seconds.

    Raises
    ------
    InputError
        One of the two ports is in use, or the address is beyond this machine and no peer is named.
    """

    def __init__(
        self,
        address: Address,
        *,
        pace_s: float,
        peers: Peers | None = None,
        patience_trs: float = 10.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._peers = peers or Peers()
        refuse_open(address, self._peers, f"'source' afni:{address}", "AFNI's protocol")
        self._patience_s = max(patience_trs * pace_s, _CONTROL_S)
        super().__init__(clock)
        self._series = 0
        self._address = address
        self._control = listen(address, "'source' afni")
        try:
            self._data = listen(Address(address.host, address.port - 1), "'source' afni")
        except BaseException:
            self._control.close()
            raise
        self._bell = Bell()
        self._begin(self._serve, "afni-source")

    def _stop(self) -> None:
        self._bell.ring()

    def _stopped(self) -> None:
        self._bell.close()

    def _serve(self) -> None:
        """One sender after another, as AFNI does."""
        try:
            while True:
                try:
                    self._session()
                except Silent:
                    self._refuse("a sender that fell silent before its first image")
                except (UnreadableVolume, TooMuch) as exc:
                    self._refuse(str(exc))
                except OSError as exc:
                    self._refuse(f"a connection that broke: {exc.strerror}")
        except Stopped:
            pass
        finally:
            self._control.close()
            self._data.close()

    def _session(self) -> None:
        """From a control connection to the end of its data."""
        announced: str | None = None
        timeout_s = None
        while True:
            # a sender that begins anew takes the place of one that never came with its data
            listening, connection, host = self._accept(timeout_s, control_only=announced is None)
            with connection:
                if listening is self._data:
                    if host != announced:
                        raise UnreadableVolume("a data connection from elsewhere than its control")
                    return self._data_sets(Wire(connection, self._bell))
                wire = Wire(connection, self._bell)
                raw = wire.until_nul(_MAX_CONTROL_BYTES, _CONTROL_S, lenient=True)
            if raw:  # else somebody looked whether anyone is here
                self._check_control(raw)
                announced, timeout_s = host, _CONNECT_S

    def _data_sets(self, wire: Wire) -> None:
        """Prologs, each with its images, until the sender hangs up."""
        while raw := wire.until_nul(MAX_PROLOG_BYTES, _PROLOG_S):
            prolog = read_prolog(raw, self._allowance.bytes)
            self._series += 1
            if not self._images(wire, prolog):
                return

    def _check_control(self, raw: bytes) -> None:
        """Whether the sender will send to our data port, and asks for nothing besides."""
        place, _, command = raw.decode("latin-1").partition("\n")
        if place.startswith("shm:"):
            raise UnreadableVolume(
                "a sender that would use shared memory; name a host to it, as in -host localhost"
            )
        found = re.fullmatch(r"tcp:[^:]*:(\d{1,5})", place.strip("\0\r "))
        if not found:
            raise UnreadableVolume("a control connection that does not speak AFNI's protocol")
        if command.strip("\0\r\n "):
            raise UnreadableVolume(
                "a sender that asks for a program to be run, which is not done here; let it send "
                "its whole prolog"
            )
        if int(found[1]) != self._address.port - 1:
            raise UnreadableVolume(
                f"a sender whose data would come on port {int(found[1])}; this source listens on "
                f"the one below its control port, {self._address.port - 1}"
            )

    def _accept(
        self, timeout_s: float | None, *, control_only: bool
    ) -> tuple[socket.socket, socket.socket, str]:
        """The next connection of somebody who may connect: where, itself, and their address."""
        wanted = [self._control] if control_only else [self._data, self._control]
        while True:
            listening = self._bell.wait(*wanted, timeout_s=timeout_s)
            connection, place = listening.accept()
            if self._peers.admit(place[0]):
                return listening, connection, place[0]
            connection.close()
            self._refuse("a connection from an address that was not named with --peer")

    def _images(self, wire: Wire, prolog: Prolog) -> bool:
        """All volumes of a data set; whether another data set may follow on the connection."""
        number = 0
        while True:
            volumes = [bytearray(prolog.size_bytes) for _ in range(prolog.channels)]
            for image in range(prolog.channels * (len(prolog.slices) if prolog.slices else 1)):
                which, channel = divmod(image, prolog.channels)
                begin = prolog.slices[which] * prolog.image_bytes if prolog.slices else 0
                into = memoryview(volumes[channel])[begin : begin + prolog.image_bytes]
                # between two volumes a scanner may be silent for as long as it likes
                waited_s = self._patience_s if image else None
                came = wire.fill(into, self._patience_s, waited_s)
                marked = bytes(into[: len(MARKER)]) == MARKER
                if came < len(into) or marked:
                    if image or (came and not marked):
                        detail = f"broken off in image {image + 1} of the volume"
                        self._inbox.fault(
                            FaultKind.TRUNCATED, detail, number, self._identity(channel)
                        )
                    return marked
                if which == (len(prolog.slices) - 1 if prolog.slices else 0):
                    self._hand_over(prolog, volumes[channel], number, channel)
            number += 1

    def _hand_over(self, prolog: Prolog, raw: bytearray, number: int, channel: int) -> None:
        stored = np.frombuffer(raw, prolog.dtype).reshape(prolog.shape, order="F")
        self._allowance.came(prolog.size_bytes * prolog.channels)
        frame = Frame(
            number=number,
            data=stored.astype(prolog.dtype.newbyteorder("="), copy=False),
            affine=prolog.affine,
            tr_s=prolog.tr_s,
            series=self._identity(channel),
            arrived_s=self._clock(),
        )
        self._inbox.put(frame)

    def _identity(self, channel: int) -> str:
        return series_identity(f"afni {self._series} {channel}", self._series)
