"""Siemens' private image header, as far as a mosaic needs it, for replays to write.

Layout (version 2): "SV10", four fixed bytes, the number of fields, 77; then for each field its name
in 64 bytes, how many values it has, its type, how many items follow, 77; then each item with its
length four times and its text padded to four bytes. Numbers are little-endian 32-bit integers.
https://nipy.org/nibabel/dicom/siemens_csa.html
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

_CHECK = 77
_SYNGO_TYPES = {"IS": 6, "FD": 4, "US": 10, "DS": 3, "SH": 22}


def csa_header(fields: Mapping[str, tuple[str, Sequence[object]]]) -> bytes:
    """Encode a header.

    Parameters
    ----------
    fields : mapping
        From a name to its DICOM type (IS, FD, US, DS, SH) and its values, written as text.
    """
    blocks = [b"SV10\x04\x03\x02\x01", struct.pack("<2I", len(fields), _CHECK)]
    for name, (kind, values) in fields.items():
        head = name.encode(), len(values), kind.encode(), _SYNGO_TYPES[kind], len(values), _CHECK
        blocks.append(struct.pack("<64si4s3i", *head))
        for value in values:
            text = str(value).encode() + b"\0"
            blocks.append(struct.pack("<4i", len(text), len(text), _CHECK, len(text)))
            blocks.append(text + bytes(-len(text) % 4))
    return b"".join(blocks)
