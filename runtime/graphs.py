"""Which compiled graphs a bundle has: the stage that each is opened as, and its file."""

from __future__ import annotations

from .manifest import Manifest


def graphs_of(manifest: Manifest) -> list[tuple[str, str]]:
    """Stage and file of every graph, in the order in which they are opened.

    A stage may have several: `localizer` is the graph behind each encoder that places concepts, and
    those encoders that do nothing else.
    """
    found = [("encoder", manifest.encoder.file)]
    if manifest.localization:
        found.append(("concept_encoder", manifest.localization.concept_encoder))
    for encoder in manifest.localizing:
        if encoder.localizer:
            found.append(("localizer", encoder.localizer.file))
        if encoder.role != "decode":
            found.append(("localizer", encoder.file))
    if spec := manifest.diffusion:
        optional = {"preview_decoder": spec.preview_decoder, "image_encoder": spec.image_encoder}
        found += [
            ("prompt_encoder", spec.prompt_encoder),
            ("unet", spec.unet),
            ("vae_decoder", spec.vae_decoder),
            *((stage, file) for stage, file in optional.items() if file),
        ]
    return found
