"""ITK's rigid and affine transforms, as text and as its binary `.mat`.

ITK writes parameters and a fixed centre c, and means y = A (x - c) + c + t, from reference to
moving image, axes left-posterior-superior. How A follows from the parameters depends on the class.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Matrix = NDArray[np.float64]

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Left-posterior-superior to right-anterior-superior, and back."""
_TEXT = b"#Insight Transform File"
_MAT_TYPES = {0: "<f8", 10: "<f4"}


def is_itk(content: bytes) -> bool:
    """Whether a file is one of ITK's."""
    return content.startswith(_TEXT) or _mat_name(content) is not None


def read_itk(content: bytes, name: str) -> Matrix:
    """Reference world to moving world (4, 4), right-anterior-superior.

    Raises
    ------
    InputError
        A damaged file, or a class that is no affine.
    """
    parts = _text(content, name) if content.startswith(_TEXT) else _mat(content, name)
    matrix = np.eye(4)
    for kind, parameters, fixed in parts:  # the first of several is applied last
        matrix = matrix @ _matrix(kind, parameters, fixed, name)
    return LPS @ matrix @ LPS


Part = tuple[str, Matrix, Matrix]


def _text(content: bytes, name: str) -> list[Part]:
    found: list[Part] = []
    kind, rows = "", {}
    try:
        for line in content.decode("ascii").splitlines():
            key, _, value = line.partition(":")
            if key == "Transform":
                kind, rows = value.strip(), {}
            elif key in ("Parameters", "FixedParameters"):
                rows[key] = np.array([float(word) for word in value.split()])
            if len(rows) == 2:
                found.append((kind, rows["Parameters"], rows["FixedParameters"]))
                rows = {}
    except ValueError as exc:
        raise InputError(f"{name} is a damaged transform of ITK ({exc})") from exc
    if not found:
        raise InputError(f"{name} is a transform of ITK without parameters")
    return found


def _mat_name(content: bytes) -> str | None:
    """Name of the first matrix of a MATLAB level 4 file, if it is a transform's."""
    if len(content) < 20:
        return None
    kind, _, columns, imaginary, length = struct.unpack("<5i", content[:20])
    if kind not in _MAT_TYPES or imaginary or columns != 1 or not 1 < length < 200:
        return None
    name = content[20 : 20 + length].split(b"\0")[0]
    return name.decode("ascii") if re.fullmatch(rb"\w+_(double|float)_3_3", name) else None


def _mat(content: bytes, name: str) -> list[Part]:
    matrices: list[tuple[str, Matrix]] = []
    at = 0
    while at + 20 <= len(content):
        kind, rows, columns, _, length = struct.unpack("<5i", content[at : at + 20])
        begin = at + 20 + length
        if kind not in _MAT_TYPES or min(rows, columns) < 0 or length < 1:
            raise InputError(f"{name} is a damaged transform of ITK")
        dtype = np.dtype(_MAT_TYPES[kind])
        at = begin + rows * columns * dtype.itemsize
        if at > len(content):
            raise InputError(f"{name} is a transform of ITK that is cut off")
        label = content[begin - length : begin].split(b"\0")[0].decode("ascii", "replace")
        values = np.frombuffer(content, dtype, rows * columns, begin).astype(np.float64)
        matrices.append((label, values))
    if len(matrices) != 2 or matrices[1][0] != "fixed":
        raise InputError(
            f"{name} must hold a transform's parameters and 'fixed'; got "
            f"{', '.join(label for label, _ in matrices)}"
        )
    return [(matrices[0][0], matrices[0][1], matrices[1][1])]


def _matrix(kind: str, parameters: Matrix, fixed: Matrix, name: str) -> Matrix:
    base = re.sub(r"_(double|float)_3_3$", "", kind)
    if base == kind or base not in _CLASSES:
        raise InputError(
            f"{name} holds a {kind or 'nameless transform'}; expected one of "
            f"{', '.join(_CLASSES)} in three dimensions: others do not fit into the resample kernel"
        )
    count, to_turn = _CLASSES[base]
    centred = base not in ("TranslationTransform", "IdentityTransform")
    if parameters.size != count or (centred and fixed.size < 3):
        raise InputError(
            f"{name}: a {base} has {count} parameters and a centre of 3; got {parameters.size} "
            f"and {fixed.size}"
        )
    matrix = np.eye(4)
    if base == "IdentityTransform":
        return matrix
    matrix[:3, :3] = to_turn(parameters, fixed)
    shift = parameters if base == "TranslationTransform" else _shift(base, parameters)
    centre = fixed[:3] if centred else np.zeros(3)
    matrix[:3, 3] = shift + centre - matrix[:3, :3] @ centre
    return matrix


def _shift(base: str, parameters: Matrix) -> Matrix:
    if base == "VersorTransform":
        return np.zeros(3)
    return parameters[9:12] if parameters.size == 12 else parameters[3:6]


def _affine(parameters: Matrix, _: Matrix) -> Matrix:
    return parameters[:9].reshape(3, 3)


def _euler(parameters: Matrix, fixed: Matrix) -> Matrix:
    x, y, z = (_about(axis, angle) for axis, angle in enumerate(parameters[:3]))
    # the fourth fixed parameter says in which order the axes turn
    return z @ y @ x if fixed.size > 3 and fixed[3] else z @ x @ y


def _versor(parameters: Matrix, _: Matrix) -> Matrix:
    x, y, z = parameters[:3]
    w = np.sqrt(max(0.0, 1 - x * x - y * y - z * z))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _similarity(parameters: Matrix, fixed: Matrix) -> Matrix:
    return parameters[6] * _versor(parameters, fixed)


def _none(_: Matrix, __: Matrix) -> Matrix:
    return np.eye(3)


def _about(axis: int, angle: float) -> Matrix:
    turn = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return turn


_CLASSES: dict[str, tuple[int, Callable[[Matrix, Matrix], Matrix]]] = {
    "AffineTransform": (12, _affine),
    "MatrixOffsetTransformBase": (12, _affine),
    "Euler3DTransform": (6, _euler),
    "VersorRigid3DTransform": (6, _versor),
    "VersorTransform": (3, _versor),
    "Similarity3DTransform": (7, _similarity),
    "TranslationTransform": (3, _none),
    "IdentityTransform": (0, _none),
}
