"""Sends volumes as a scanner pushes them, by C-STORE; the other end of `dicom_source.py`."""

from __future__ import annotations

import socket
import time
from io import BytesIO
from typing import Any

from pydicom import dcmread, uid

from ..errors import InputError
from .faults import Delivery, Mishap
from .listening import Address
from .volume_writer import VolumeWriter, WrittenVolume

_TITLE = "SCANNER"
_TIMEOUT_S = 10.0
_WAKE_S = 0.1


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
        from pynetdicom import AE

        self._address = address
        self._writer = writer
        node: Any = AE(ae_title=_TITLE)
        for kind in (uid.MRImageStorage, uid.EnhancedMRImageStorage):
            node.add_requested_context(kind, uid.ExplicitVRLittleEndian)
        node.acse_timeout = node.dimse_timeout = node.connection_timeout = _TIMEOUT_S
        node.network_timeout = None  # a stall is no reason to hang up
        self._associate = lambda: node.associate(address.host, address.port, ae_title=title)
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

    def _store(self, dataset: Any) -> None:
        if not self._association.is_established:  # ended after a silence
            self._association = self._associated()
        answer = store(self._association, dataset)
        if "Status" not in answer:
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
        association = self._associate()
        if not association.is_established:
            raise trouble
        return association


def store(association: Any, dataset: Any) -> Any:
    """Send a file and wait for its answer, as the association's own method does.

    pynetdicom's thread rests while an answer is waited for, and wakes after it. Were the next file
    sent before it is awake, it would be thought to rest, and take that file's answer for itself.
    """
    answer = association.send_c_store(dataset)
    deadline_s = time.monotonic() + _WAKE_S
    while association._is_paused and time.monotonic() < deadline_s:
        time.sleep(_WAKE_S / 500)
    return answer
