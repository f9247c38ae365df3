"""Is a bundle intact: every byte against its hash, every stage against its golden output."""

from __future__ import annotations

from collections.abc import Mapping

from .bundle import Bundle
from .errors import BundleError
from .golden import Check, golden_checks
from .kernels import open_kernels
from .stages import open_stages


def verify(bundle: Bundle, devices: Mapping[str, str], threads: int) -> list[Check]:
    """All checks of a bundle that was opened with `always_hash`.

    Raises
    ------
    BundleError
        There is nothing to compare with, or a file that cannot be used.
    """
    golden = bundle.manifest.golden
    if golden is None:
        raise BundleError(f"{bundle.root} has no golden outputs to compare with; export it again")
    files = f"{len(bundle.manifest.files)} files"
    checks = [Check(what="hashes", passed=True, measured=f"{files} unchanged", allowed=files)]
    checks += _kernel_checks(bundle)
    stages = open_stages(bundle, devices, threads)
    try:
        checks += golden_checks(bundle, stages, golden)
    finally:
        stages.close()
    return checks


def _kernel_checks(bundle: Bundle) -> list[Check]:
    """Whether every binary is the one that its launch contract was written for."""
    kernels = open_kernels(bundle)
    if kernels is None:
        return []
    try:
        measured = f"{kernels.check()} binaries unchanged"
    except ValueError as exc:
        raise BundleError(str(exc)) from exc
    wanted = len(kernels.targets) * len(kernels.document["variants"])
    return [Check(what="kernels", passed=True, measured=measured, allowed=f"{wanted} binaries")]
