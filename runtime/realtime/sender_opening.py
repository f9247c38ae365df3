"""Where a recorded run is played to over a network, as an operator words it."""

from __future__ import annotations

from ..errors import InputError
from .address import resolved_address
from .network_player import Sender
from .volume_writer import VolumeWriter

KINDS = ("afni", "zmq", "dicom")


def is_network(text: str) -> bool:
    """Whether a place is a network's, not a folder."""
    kind, colon, _ = text.partition(":")
    return bool(colon) and kind in KINDS


def open_sender(text: str, writer: VolumeWriter, token: str | None = None) -> Sender:
    """Connect to a receiver.

    Parameters
    ----------
    text : str
        `afni:[HOST:]PORT`, `zmq:[HOST:]PORT` or `dicom:[HOST:]PORT`.
    writer : VolumeWriter
        Format of what goes to a DICOM node; the others have one of their own.
    token : str, optional
        For ZeroMQ beyond this machine.

    Raises
    ------
    InputError
        Nobody listens there, or a format that is not DICOM.
    """
    kind, _, place = text.partition(":")
    address = resolved_address(place, f"'to' {kind}:")
    if kind == "zmq":
        from .zmq_sender import ZmqSender

        return ZmqSender(address, token=token)
    if kind == "afni":
        from .afni_sender import AfniSender

        return AfniSender(address)
    if kind == "dicom":
        from .dicom_sender import DicomSender

        if writer.suffix != ".dcm":
            raise InputError(
                f"'format' must be one of DICOM to be sent to {text}, such as mosaic; this one is "
                f"of files *{writer.suffix}"
            )
        return DicomSender(address, writer)
    raise InputError(f"'to' must be a folder or one of {', '.join(KINDS)}; got {text!r}")
