"""Bundle and volume in, decoded brain out: NumPy, ONNX Runtime and llama.cpp, never torch."""

from .decoder import Decoder
from .errors import (
    BundleError,
    CheckpointError,
    DeviceError,
    InputError,
    MissingExtraError,
    ScansideError,
)
from .events import Done, Event, Image, Preview, Token
from .result import AnsweredQuestion, Result

__all__ = [
    "AnsweredQuestion",
    "BundleError",
    "CheckpointError",
    "Decoder",
    "DeviceError",
    "Done",
    "Event",
    "Image",
    "InputError",
    "MissingExtraError",
    "Preview",
    "Result",
    "ScansideError",
    "Token",
]
