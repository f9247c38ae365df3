"""Which stage runs where: what the caller wrote down, and nothing else.

"cpu"                                        every stage on the CPU
"cuda,language=cpu"                          the same as {"default": "cuda", "language": "cpu"}
"""

from __future__ import annotations

from collections.abc import Mapping

from .errors import DeviceError, InputError

STAGES = (
    "preprocess", "encoder", "language", "prompt_encoder", "unet", "vae_decoder",
    "preview_decoder", "image_encoder", "localizer", "concept_encoder",
)  # fmt: skip
DEVICES = ("cpu", "cuda", "rtx", "tensorrt")
AVAILABLE = {stage: DEVICES for stage in STAGES}
"""What this version runs each stage on."""


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
    DeviceError
        A device that this version has no engine for.
    """
    wanted = dict(device) if isinstance(device, Mapping) else _parse(device)
    default = wanted.pop("default", "cpu")
    for stage in wanted:
        if stage not in STAGES:
            raise InputError(f"'device' names no stage {stage!r}; stages are {', '.join(STAGES)}")
    chosen = {stage: wanted.get(stage, default) for stage in STAGES}
    for stage, name in chosen.items():
        if name not in DEVICES:
            raise InputError(f"'device' must be one of {', '.join(DEVICES)}; got {name!r}")
        if name not in AVAILABLE[stage]:
            raise DeviceError(
                f"device {name!r} was asked for {stage}, but this version runs it on "
                f"{', '.join(AVAILABLE[stage])} only; use device='cpu' for it"
            )
    return chosen


def on_gpu(devices: Mapping[str, str]) -> bool:
    """Whether any stage is meant to run on a GPU."""
    return any(name != "cpu" for name in devices.values())


def _parse(text: str) -> dict[str, str]:
    wanted: dict[str, str] = {}
    for part in text.split(","):
        stage, _, name = part.strip().rpartition("=")
        wanted[stage or "default"] = name
    return wanted
