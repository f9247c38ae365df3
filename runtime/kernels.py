"""The compiled kernels of a bundle, opened only when they keep this version's launch contract."""

from __future__ import annotations

from pathlib import PurePosixPath

from ..kernels.compiled import CompiledKernels
from .bundle import Bundle
from .errors import BundleError


def open_kernels(bundle: Bundle) -> CompiledKernels | None:
    """The folder of kernels that `kernels.launcher` takes; None if the bundle holds none.

    Raises
    ------
    BundleError
        Kernels for another launch contract, for other architectures than the manifest says, or in
        files that the manifest does not list.
    """
    spec = bundle.manifest.kernels
    if spec is None:
        return None
    try:
        kernels = CompiledKernels.open(bundle.path(spec.contract).parent)
    except ValueError as exc:
        raise BundleError(str(exc)) from exc
    for image in kernels.document["images"].values():
        bundle.path(str(PurePosixPath(spec.contract).with_name(image["file"])))
    if kernels.targets != spec.targets:
        raise BundleError(
            f"{kernels.folder} has code for {', '.join(kernels.targets)}, the manifest says "
            f"{', '.join(spec.targets)}; export the bundle again"
        )
    return kernels
