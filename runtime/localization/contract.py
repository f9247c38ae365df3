"""What the encoders and localizers of a manifest must agree on before maps can be fused."""

from __future__ import annotations

from ..errors import BundleError
from ..manifest import EncoderSpec, Manifest, TensorSpec

MOST_ENCODERS = 3


def check_localizers(manifest: Manifest) -> None:
    """BundleError unless every encoder of a manifest with localization can localize.

    All see one model grid, in cubes of their own size, and speak of one CLIP space.
    """
    encoders = manifest.localizing
    if len(encoders) != len(manifest.encoders):
        raise BundleError("manifest.json: with localization every encoder needs a localizer")
    if len(encoders) > MOST_ENCODERS:
        raise BundleError(
            f"manifest.json: {len(encoders)} encoders; this version takes up to {MOST_ENCODERS}"
        )
    for encoder in encoders:
        if _place(encoder) != _place(manifest.encoder):
            raise BundleError(
                f"manifest.json: {encoder.file} has another model grid than "
                f"{manifest.encoder.file}; maps are fused on one grid"
            )
        _check_graph(encoder, manifest.encoder.outputs["clip"].shape[-1])


def _place(encoder: EncoderSpec) -> tuple[object, ...]:
    grid = encoder.geometry
    return grid.grid, grid.affine, grid.axcodes, grid.mapping, grid.align_corners


def _check_graph(encoder: EncoderSpec, clip: int) -> None:
    spec, cubes = encoder.localizer, encoder.geometry.cubes
    assert spec is not None
    hidden = encoder.outputs.get("hidden")
    concepts = spec.inputs.get("concepts")
    rows = concepts.shape[0] if concepts else 0
    expected = {
        "hidden": hidden,
        "concepts": _float(rows, clip),
        "relevance": _float(rows, cubes),
        "similarity": _float(rows),
    }
    if hidden is None or {**spec.inputs, **spec.outputs} != expected:
        raise BundleError(
            f"manifest.json: {spec.file} does not fit {encoder.file}: it must take hidden and "
            f"concepts (K, {clip}) and give relevance (K, {cubes}) and similarity (K,)"
        )


def _float(*shape: int) -> TensorSpec:
    return TensorSpec(shape=shape, dtype="float32")
