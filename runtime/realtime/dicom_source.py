"""Volumes that a scanner pushes: a DICOM node that takes C-STORE of MR and of enhanced MR.

What arrives is read as a file of a folder is, by `read_dicom`, and nothing of it is written down.
C-STORE has no room for a token: beyond this machine the scanner's address must be named.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from pydicom import uid
from pynetdicom import AE, evt

from .address import Address
from .allowance import MAX_VOLUME_BYTES
from .dicom_guard import MAX_PDU_BYTES, GuardedServer, GuardedStates, guard_of, wake
from .dicom_slices import SliceFile
from .dicom_volume import read_dicom
from .listening import Peers, cannot_listen, refuse_open
from .listening_source import ListeningSource
from .slice_gathering import SliceGathering
from .source import Arrival, FaultKind, IncompleteVolume, UnreadableVolume

TITLE = "SCANSIDE"
"""Our name as a node; callers may use any other."""
_HEADERS_BYTES = 1 << 24
"""Room for the headers of an enhanced file besides its pixels."""
_MOST_ASSOCIATIONS = 4
_IDLE_S = 60.0
"""After which an association in which nothing comes is ended; scanners open another."""
_WAKE_S = 0.05
_SUCCESS, _CANNOT_UNDERSTAND, _CANNOT_READ = 0x0000, 0xC000, 0xA900
"""Statuses of C-STORE, PS3.4 table B.2-1."""


class DicomSource(ListeningSource):
    """Frames from a DICOM node of our own.

    Parameters
    ----------
    address : Address
        Where it listens.
    pace_s : float
        Seconds between two volumes.
    first_number : int
        Acquisition number of the run's first volume.
    peers : Peers
        Who may send besides this machine.
    patience_trs : float
        How long a volume may lack slices.
    clock : callable
        Seconds.

    Raises
    ------
    InputError
        The address is in use, or is beyond this machine and no peer is named.
    """

    def __init__(
        self,
        address: Address,
        *,
        pace_s: float,
        first_number: int = 1,
        peers: Peers | None = None,
        patience_trs: float = 3.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        peers = peers or Peers()
        refuse_open(address, peers, f"'source' dicom:{address}", "C-STORE")
        super().__init__(clock)
        self._first_number = first_number
        self._gathering = SliceGathering(patience_trs * pace_s)
        self._reading = threading.Lock()
        self._server = self._open(address, peers)
        self._begin(lambda: self._server.serve_forever(_WAKE_S), "dicom-source")

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for at most `timeout_s` seconds; what has come, oldest first, possibly nothing."""
        arrivals = super().poll(timeout_s)
        with self._reading:
            return arrivals + self._gathering.tick(self._clock())

    def _stop(self) -> None:
        self._server.shutdown()

    def _stopped(self) -> None:
        for association in self._server.active_associations:
            # abort() would wait for a peer that may never answer
            if guard := guard_of(association):
                guard.hang_up()
            wake(association)
            association.kill()
            association.join()
        for guard in list(self._server.opened):  # a thread that is ended leaves its own open
            guard.close()

    def _open(self, address: Address, peers: Peers) -> Any:
        node: Any = AE(ae_title=TITLE)
        syntaxes = [
            *(uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian),
            *(uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
        ]
        for kind in (uid.MRImageStorage, uid.EnhancedMRImageStorage):
            node.add_supported_context(kind, syntaxes)
        node.add_supported_context("1.2.840.10008.1.1")  # a scanner's "echo" test
        node.maximum_pdu_size = MAX_PDU_BYTES
        node.maximum_associations = _MOST_ASSOCIATIONS
        node.network_timeout = _IDLE_S
        node.acse_timeout = node.dimse_timeout = _IDLE_S / 2
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._connected),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_ACCEPTED, self._accepted),
            (evt.EVT_CONN_CLOSE, self._hung_up),
        ]
        try:
            server: Any = node.make_server(
                (address.host, address.port),
                evt_handlers=handlers,
                contexts=node.supported_contexts,
                ae_title=TITLE,
                server_class=GuardedServer,
            )
        except OSError as exc:
            raise cannot_listen(address, "'source' dicom", exc.errno) from exc
        server.peers = peers
        server.most_bytes = self._most_bytes
        server.told = self._refuse
        server.opened = weakref.WeakSet()
        return server

    def _most_bytes(self) -> int:
        return min(MAX_VOLUME_BYTES, self._allowance.bytes + _HEADERS_BYTES)

    def _store(self, event: Any) -> int:
        """Take a file in."""
        arrived_s = self._clock()
        guard_of(event.assoc).file_ends()
        try:
            raw = event.encoded_dataset()
            with self._reading:
                arrivals = self._read(raw, arrived_s)
        except IncompleteVolume as exc:
            self._inbox.fault(FaultKind.TRUNCATED, str(exc), exc.number, exc.series)
            with self._reading:
                self._gathering.spoil(exc.series, exc.number, arrived_s)
            return _CANNOT_READ
        except UnreadableVolume as exc:
            self._inbox.fault(FaultKind.UNREADABLE, str(exc))
            return _CANNOT_READ
        except Exception as exc:  # of a library that met what it does not know
            self._inbox.fault(
                FaultKind.UNREADABLE, f"a file that nobody reads ({type(exc).__name__})"
            )
            return _CANNOT_UNDERSTAND
        for arrival in arrivals:
            self._inbox.pass_on(arrival)
        return _SUCCESS

    def _read(self, raw: bytes, arrived_s: float) -> list[Arrival]:
        found = read_dicom(raw, arrived_s=arrived_s, first_number=self._first_number)
        if isinstance(found, SliceFile):
            found = self._gathering.add(found, arrived_s)
        else:
            self._allowance.came(len(raw))
        return found

    def _echo(self, event: Any) -> int:
        guard_of(event.assoc).file_ends()
        return _SUCCESS

    def _connected(self, event: Any) -> None:
        event.assoc.dul.state_machine = GuardedStates(event.assoc.dul)

    def _accepted(self, event: Any) -> None:
        guard_of(event.assoc).accepted = True

    def _hung_up(self, event: Any) -> None:
        guard = guard_of(event.assoc)
        if guard is None:
            return
        if not guard.accepted:
            wake(event.assoc)
        if guard.over:  # told already
            return
        if guard.file_bytes:
            detail = f"a peer that hung up after {guard.file_bytes} bytes of a file"
            self._inbox.fault(FaultKind.TRUNCATED, detail)
        elif guard.spoke and not (guard.accepted or guard.refused):
            self._inbox.fault(FaultKind.UNREADABLE, "a peer that does not speak DICOM")
