"""Sends volumes as a scanner pushes them, by C-STORE; the other end of `dicom_source.py`."""

from __future__ import annotations

import queue
import socket
import time
from io import BytesIO
from typing import Any

from pydicom import dcmread, uid
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode

from ..errors import InputError
from .address import Address
from .faults import Delivery, Mishap
from .volume_writer import VolumeWriter, WrittenVolume

_TITLE = "SCANNER"
_TIMEOUT_S = 10.0
_AGAIN_S = 0.2
_TRANSIENT = 2
"""How a node rejects what it may take later, PS3.8 table 9-21."""
_PRIORITY_LOW = 2


class DicomSender:
    """An association with a node.

    Parameters
    ----------
    address : Address
        Of the node.
    writer : VolumeWriter
        The format of the files, one of DICOM.
    title : str
        The node's.

    Raises
    ------
    InputError
        Nobody listens, or not to MR images.
    """

    name = "dicom"
    mishaps = frozenset(Mishap)

    def __init__(self, address: Address, writer: VolumeWriter, title: str = "SCANSIDE") -> None:
        self._address = address
        self._writer = writer
        self._sockets: list[socket.socket] = []
        node: Any = AE(ae_title=_TITLE)
        for kind in (uid.MRImageStorage, uid.EnhancedMRImageStorage):
            node.add_requested_context(kind, uid.ExplicitVRLittleEndian)
        node.acse_timeout = node.dimse_timeout = node.connection_timeout = _TIMEOUT_S
        node.network_timeout = None  # a stall is no reason to hang up
        self._associate = lambda: node.associate(
            address.host,
            address.port,
            ae_title=title,
            evt_handlers=[(evt.EVT_CONN_OPEN, self._connected)],
        )
        self._association: Any = self._associated()

    def send(self, volume: WrittenVolume, delivery: Delivery) -> None:
        """Send a volume, whole or not as its delivery says; an InputError if nobody takes it."""
        parts = self._writer.parts(volume)
        for place, (_, raw) in enumerate(parts):
            dataset = dcmread(BytesIO(raw))
            if delivery.content == "truncated" and place == len(parts) - 1:
                kept = max(2, int(len(dataset.PixelData) * delivery.amount)) // 2 * 2
                dataset.PixelData = dataset.PixelData[:kept]
            self._store(dataset)

    def close(self) -> None:
        """Hang up; every file has been answered by now."""
        if self._association.is_established:
            self._association.release()
        self._close_sockets()

    def _store(self, dataset: Any) -> None:
        if not self._association.is_established:  # ended after a silence
            self._close_sockets()
            self._association = self._associated()
        answer = store(self._association, dataset)
        if answer is None:
            raise InputError(f"the node at dicom:{self._address} does not answer; its log says why")

    def _associated(self) -> Any:
        trouble = InputError(
            f"no node that takes MR images answers at dicom:{self._address}; start the receiver "
            "first"
        )
        try:
            # pynetdicom leaves its socket open when nobody listens
            place = (self._address.host, self._address.port)
            socket.create_connection(place, _TIMEOUT_S).close()
        except OSError as exc:
            raise trouble from exc
        deadline_s = time.monotonic() + _TIMEOUT_S
        while not (association := self._associate()).is_established:
            self._close_sockets()
            if not _busy(association) or time.monotonic() > deadline_s:
                raise trouble
            time.sleep(_AGAIN_S)
        return association

    def _connected(self, event: Any) -> None:
        self._sockets.append(event.assoc.dul.socket.socket)

    def _close_sockets(self) -> None:
        """pynetdicom leaves its own open when the other side has ended the connection first."""
        while self._sockets:
            self._sockets.pop().close()


def _busy(association: Any) -> bool:
    """Whether a node that did not agree has too many others now, and may be asked again."""
    answer = association.acceptor.primitive
    return answer is None or answer.result == _TRANSIENT


def store(association: Any, dataset: Any) -> int | None:
    """Send a file and wait for its answer.

    The association's own method has its thread rest meanwhile, and does not wait until it is awake
    again. Were the next file sent before that, it would be thought to rest, and take that file's
    answer for itself. Here the answer is overheard, and the thread throws it away.

    Parameters
    ----------
    association : pynetdicom.association.Association
        An established one.
    dataset : pydicom.Dataset
        A file of a kind that was agreed on.

    Returns
    -------
    status : int or None
        Of C-STORE, PS3.4 table B.2-1; None if the association ended, or no answer came in time.
    """
    (context,) = (
        context
        for context in association.accepted_contexts
        if context.abstract_syntax == dataset.SOPClassUID
    )
    syntax = context.transfer_syntax[0]
    encoded = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian)
    assert encoded is not None  # it was read from a file of ours
    request: Any = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = dataset.SOPClassUID
    request.AffectedSOPInstanceUID = dataset.SOPInstanceUID
    request.Priority = _PRIORITY_LOW
    request.DataSet = BytesIO(encoded)
    statuses: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def answered(event: Any) -> None:
        statuses.put(event.message.command_set.Status)

    def ended(_: Any) -> None:
        statuses.put(None)

    handlers = {evt.EVT_DIMSE_RECV: answered, evt.EVT_CONN_CLOSE: ended}
    for event, handler in handlers.items():
        association.bind(event, handler)
    try:
        if not association.is_established:  # it ended before anything could be heard
            return None
        association.dimse.send_msg(request, context.context_id)
        return statuses.get(timeout=association.dimse_timeout)
    except queue.Empty:
        return None
    finally:
        for event, handler in handlers.items():
            association.unbind(event, handler)
