"""The manifest of a bundle: what is in it, and what each stage takes and gives.

Plain values; `manifest_reader.py` makes them from JSON and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Shape: TypeAlias = tuple[int, ...]
Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What kind of volume the bundle decodes."""

    kind: str
    """beta, one activity map per trial."""
    units: str
    """Units after scaling, for example percent signal change."""
    scale: float
    """Turns the values of a volume (after slope and intercept) into those units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """The model grid, its cubes, and how a volume is brought to it."""

    grid: Shape
    axcodes: str
    """World direction in which each grid axis grows, for example SAR."""
    affine: tuple[tuple[float, ...], ...]
    """Grid voxels to millimetres."""
    cube: int
    pad: str
    mapping: str
    """resize: shape to shape; affine: by world coordinates."""
    align_corners: bool
    cubes: int
    """Active cubes N."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph."""

    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizerSpec:
    """The graph behind one encoder that says which cubes speak for a concept."""

    file: str
    inputs: dict[str, TensorSpec]
    """hidden, of the encoder, and concepts (K, E)."""
    outputs: dict[str, TensorSpec]
    """relevance (K, N) and similarity (K,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """One encoder: its graph, its geometry, its contract."""

    role: str
    """decode: gives all answers; localize: only places concepts."""
    file: str
    arrays: str
    """NumPy archive with active, mean and inv_std."""
    geometry: GridSpec
    normalisation: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    localizer: LocalizerSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSpec:
    """How a dialogue is written around the prefix; every turn is tokenised by itself."""

    bos: bool
    before_prefix: str
    after_prefix: str
    first_turn: str
    next_turn: str
    answer: str
    stop: tuple[str, ...]
    """Strings that end an answer; the end-of-text token always does."""
    specials: tuple[str, ...] = ()
    """Special tokens in the pieces above; nowhere else is a text taken for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSpec:
    """The language model and its dialogue."""

    file: str
    quantization: str
    context: int
    """Tokens that prefix, question and answer have together."""
    prefix_length: int
    width: int
    template: TemplateSpec
    instructions: dict[str, str]
    max_tokens: dict[str, int]
    projector_sha256: str
    """Identity of the projector that makes the prefix; the GGUF carries it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSpec:
    """The picture stage."""

    prompt_encoder: str
    prompt_tokenizer: str
    prompt_length: int
    pad_id: int
    bos_id: int
    eos_id: int
    unet: str
    vae_decoder: str
    preview_decoder: str | None
    """A tiny decoder for previews, TAESD's format."""
    image_encoder: str | None
    """Picture to CLIP vector, which ranks candidates."""
    arrays: str
    image_size: Shape
    latent_shape: Shape
    beta: float
    """Share of noise in the start."""
    mix: str
    """literal, as the paper writes it, or variance, which keeps that of the latent."""
    guidance: float
    """Classifier-free guidance; 1 for none."""
    schedules: dict[str, tuple[int, ...]]
    """For each schedule the step counts that have a table."""
    schedule: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationSpec:
    """How a concept becomes a vector, and relevance a map."""

    concept_encoder: str
    tokenizer: str
    length: int
    """Tokens of a concept, its begin and end included."""
    pad_id: int
    bos_id: int
    eos_id: int
    relu: bool
    """Keep only what speaks for the concept."""
    scaling: str
    """Of a finished map: max, minmax or none."""
    fusion: str
    """Of the maps of several encoders: mean, max, or others."""
    threshold: float
    """From which value of a scaled map on a voxel counts as located."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """The compiled kernels."""

    contract: str
    """File with their launch contract; the binaries lie beside it."""
    targets: tuple[str, ...]
    """GPU architectures that there is code for, and ptx for later ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """What a file must be."""

    sha256: str
    size_bytes: int
    precision: str = "exact"
    """In which a graph computes, or of what type its numbers are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSpec:
    """An input and what every stage answered to it at export."""

    volume: str
    outputs: str
    texts: dict[str, str]
    """Greedy answers by task."""
    image_prompt: str
    concept: str | None
    """What is located, where the bundle can."""
    seed: int
    steps: int
    schedule: str
    tolerance: dict[str, float]
    """Largest difference relative to the largest golden value, by output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A checked manifest."""

    name: str
    input: InputSpec
    encoders: tuple[EncoderSpec, ...]
    language: LanguageSpec | None
    diffusion: DiffusionSpec | None
    localization: LocalizationSpec | None
    kernels: KernelSpec | None
    files: dict[str, FileSpec]
    golden: GoldenSpec | None
    raw: Json
    """The JSON document itself, for what is only shown: producer, licences, parity, quality."""

    @property
    def encoder(self) -> EncoderSpec:
        """The encoder that decodes."""
        return next(encoder for encoder in self.encoders if encoder.role == "decode")

    @property
    def localizing(self) -> tuple[EncoderSpec, ...]:
        """The encoders that localize, the one that decodes first."""
        found = [encoder for encoder in self.encoders if encoder.localizer]
        return tuple(sorted(found, key=lambda encoder: encoder.role))
