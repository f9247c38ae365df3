"""The shipped trials, decoded with the shipped bundle, as pictures and one HTML page."""

from .outcome import Outcome
from .run import PAGE, run_demo

__all__ = ["PAGE", "Outcome", "run_demo"]
