"""Which stage runs where: what the caller wrote down, and nothing else.

"cpu"                                        every stage on the CPU
"cuda,language=cpu"                          the same as {"default": "cuda", "language": "cpu"}
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import InputError

STAGES = (
    "preprocess", "encoder", "language", "prompt_encoder", "unet", "vae_decoder",
    "preview_decoder", "image_encoder", "localizer", "concept_encoder",
)  # fmt: skip
DEVICES = ("cpu", "cuda", "rtx", "tensorrt")


def stage_devices(device: str | Mapping[str, str]) -> dict[str, str]:
    """The device of every stage.

    Parameters
    ----------
    device : str or mapping
        One device for all, or `default` and exceptions by stage, as a mapping or as
        "default,stage=device,...".

    Raises
    ------
    InputError
        A device or a stage that does not exist.
    """
    wanted = dict(device) if isinstance(device, Mapping) else _parse(device)
    default = wanted.pop("default", "cpu")
    for stage in wanted:
        if stage not in STAGES:
            raise InputError(f"'device' names no stage {stage!r}; stages are {', '.join(STAGES)}")
    chosen = {stage: wanted.get(stage, default) for stage in STAGES}
    for name in chosen.values():
        if name not in DEVICES:
            raise InputError(f"'device' must be one of {', '.join(DEVICES)}; got {name!r}")
    return chosen


def _parse(text: str) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for part in text.split(","):
        stage, _, name = part.strip().rpartition("=")
        wanted[stage or "default"] = name
    return wanted
