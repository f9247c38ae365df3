"""Bundle and volume in, decoded brain out: NumPy, ONNX Runtime and llama.cpp, never torch."""

from .chat import Chat
from .decoder import Decoder
from .errors import (
    BundleError,
    CheckpointError,
    DeviceError,
    InputError,
    MissingExtraError,
    ScansideError,
)
from .events import Done, Event, Heatmap, Image, Intermediate, Pause, Preview, Token
from .generation import Generation
from .localization.location import Ablation, Location
from .reply import Reply
from .result import AnsweredQuestion, Candidate, Result, TokenScore
from .sampling import Sampling

__all__ = [
    "Ablation",
    "AnsweredQuestion",
    "BundleError",
    "Candidate",
    "Chat",
    "CheckpointError",
    "Decoder",
    "DeviceError",
    "Done",
    "Event",
    "Generation",
    "Heatmap",
    "Image",
    "InputError",
    "Intermediate",
    "Location",
    "MissingExtraError",
    "Pause",
    "Preview",
    "Reply",
    "Result",
    "Sampling",
    "ScansideError",
    "Token",
    "TokenScore",
]
