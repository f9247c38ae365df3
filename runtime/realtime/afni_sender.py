"""Sends volumes as Dimon does to AFNI's real-time plug-in; the other end of `afni_source.py`."""

from __future__ import annotations

import socket

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .address import Address
from .faults import Delivery, Mishap
from .volume_writer import WrittenVolume

_TIMEOUT_S = 10.0
_DATUM = {"u1": "byte", "i2": "short", "i4": "int", "f4": "float"}
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class AfniSender:
    """A connection to AFNI's plug-in or to an `AfniSource`, opened with the first volume.

    Parameters
    ----------
    address : Address
        Of the control port; data go to the port below.
    by_slice : bool
        Whether slices are sent one by one, every second of them first.

    Raises
    ------
    InputError
        Nobody listens.
    """

    name = "afni"
    mishaps = frozenset({Mishap.STALL, Mishap.RESTART})
    """Volumes bear no numbers, so none can be missing, twice there or out of turn."""

    def __init__(self, address: Address, *, by_slice: bool = False) -> None:
        self._address = address
        self._by_slice = by_slice
        self._data: socket.socket | None = None
        self._series = -1
        self._connect(address.port).close()  # so that a receiver that is not there shows at once

    def send(self, volume: WrittenVolume, delivery: Delivery) -> None:
        """Send a volume; another series has a connection of its own.

        Raises
        ------
        InputError
            The receiver is gone.
        """
        stored = _sendable(volume)
        if self._data is None or delivery.series != self._series:
            self.close()
            self._series = delivery.series
            self._data = self._open()
            self._say(prolog_bytes(volume, stored, by_slice=self._by_slice))
        images = [stored]
        if self._by_slice:
            count = stored.shape[2]
            images = [stored[:, :, z] for z in (*range(0, count, 2), *range(1, count, 2))]
        for image in images:
            self._say(image.tobytes(order="F"))

    def close(self) -> None:
        """Hang up; what was sent still arrives."""
        if self._data:
            self._data.close()
            self._data = None

    def _open(self) -> socket.socket:
        with self._connect(self._address.port) as control:
            control.sendall(f"tcp:{self._address.host}:{self._address.port - 1}\0".encode())
        return self._connect(self._address.port - 1)

    def _connect(self, port: int) -> socket.socket:
        try:
            return socket.create_connection((self._address.host, port), _TIMEOUT_S)
        except OSError as exc:
            raise InputError(
                f"nobody listens at {self._address.host}, port {port} ({exc.strerror}); start the "
                "receiver first"
            ) from exc

    def _say(self, raw: bytes) -> None:
        assert self._data
        try:
            self._data.sendall(raw)
        except OSError as exc:
            raise InputError(
                f"the receiver at afni:{self._address} hung up ({exc.strerror}); its log says why"
            ) from exc


def prolog_bytes(volume: WrittenVolume, stored: NDArray[np.generic], *, by_slice: bool) -> bytes:
    """The prolog of a run, its NUL included.

    Parameters
    ----------
    volume : WrittenVolume
        Its first volume.
    stored : (X, Y, Z) array
        As it will be sent.
    by_slice : bool
        Whether images are slices.
    """
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    view = " ".join(f"{mm * n:.6f}" for mm, n in zip(spacing, stored.shape, strict=True))
    order = "LSB_FIRST" if stored.dtype.newbyteorder("<") == stored.dtype else "MSB_FIRST"
    oblique = " ".join(f"{value:.8g}" for value in (_RAS_TO_LPS @ volume.affine).ravel())
    lines = [
        f"ACQUISITION_TYPE {'2D+zt' if by_slice else '3D+t'}",
        f"TR {volume.tr_s:.6f}",
        f"XYFOV {view}",
        "XYMATRIX {} {} {}".format(*stored.shape),
        f"DATUM {_DATUM[stored.dtype.str[1:]]}",
        f"BYTEORDER {order}",
        "ZORDER alt",
        f"XYZAXES {_axes(volume.affine)}",
        f"OBLIQUE_XFORM {oblique}",
    ]
    return "\n".join(lines).encode() + b"\n\0"


def _axes(affine: NDArray[np.float64]) -> str:
    """The directions that the axes are nearest to."""
    import nibabel as nib

    ends = {"R": "L-R", "L": "R-L", "A": "P-A", "P": "A-P", "S": "I-S", "I": "S-I"}
    return " ".join(ends[end] for end in nib.aff2axcodes(affine))


def _sendable(volume: WrittenVolume) -> NDArray[np.generic]:
    """(X, Y, Z) in a type that AFNI has; intensities if there is a scale, for it has none."""
    if (volume.slope, volume.inter) == (1.0, 0.0):
        if volume.data.dtype.str[1:] in _DATUM:
            return volume.data
        if volume.data.dtype.kind in "iu" and volume.data.max() <= np.iinfo("i2").max:
            if volume.data.min() >= np.iinfo("i2").min:
                return volume.data.astype("i2")
    return (volume.data * np.float64(volume.slope) + volume.inter).astype("f4")
