"""JSON to `Manifest`, checked while it is read: types, choices, and whether the parts fit together.

Keys that this version does not know are ignored; a schema that it does not know is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import BundleError
from .localization.choices import FUSIONS, SCALINGS
from .localization.contract import check_localizers
from .manifest import (
    DiffusionSpec,
    EncoderSpec,
    FileSpec,
    GoldenSpec,
    GridSpec,
    InputSpec,
    Json,
    KernelSpec,
    LanguageSpec,
    LocalizationSpec,
    LocalizerSpec,
    Manifest,
    Shape,
    TemplateSpec,
    TensorSpec,
)

SCHEMA = 1
KINDS = ("beta",)
ROLES = ("decode", "localize")
MAPPINGS = ("resize", "affine")
MIXES = ("literal", "variance")
NORMALISATIONS = ("voxel", "none")
TEXT_TASKS = ("caption", "describe", "prompt")


class _Fields:
    """Typed access to one JSON object; errors name the place."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise BundleError(f"manifest.json: {where} must be an object; got {values!r}")
        self._values: Json = values
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        if key not in self._values:
            raise BundleError(
                f"manifest.json: {self._where}.{key} is missing; export the bundle again"
            )
        value = self._values[key]
        flag_as_number = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or flag_as_number:
            raise BundleError(f"manifest.json: {self._where}.{key} has a wrong type: {value!r}")
        return value

    def text(self, key: str, choices: Sequence[str] = ()) -> str:
        value = self.get(key, str)
        if choices and value not in choices:
            raise BundleError(
                f"manifest.json: {self._where}.{key} is {value!r}; this version knows "
                f"{', '.join(choices)}"
            )
        return value

    def whole(self, key: str, least: int = 1) -> int:
        value = self.get(key, int)
        if value < least:
            raise BundleError(
                f"manifest.json: {self._where}.{key} must be at least {least}; got {value}"
            )
        return value

    def number(self, key: str) -> float:
        value = float(self.get(key, (int, float)))
        if not math.isfinite(value):
            raise BundleError(f"manifest.json: {self._where}.{key} must be finite; got {value}")
        return value

    def flag(self, key: str) -> bool:
        return bool(self.get(key, bool))

    def shape(self, key: str, length: int | None = None) -> Shape:
        value = tuple(self.get(key, list))
        if not all(isinstance(n, int) and n > 0 for n in value) or length not in (None, len(value)):
            raise BundleError(f"manifest.json: {self._where}.{key} is no shape: {list(value)}")
        return value

    def object(self, key: str) -> _Fields:
        return _Fields(self.get(key, Mapping), f"{self._where}.{key}")

    def mapping(self, key: str) -> Json:
        return self.get(key, Mapping)

    def texts(self, key: str) -> dict[str, str]:
        fields = self.object(key)
        return {name: fields.text(name) for name in self.mapping(key)}

    def wholes(self, key: str) -> dict[str, int]:
        fields = self.object(key)
        return {name: fields.whole(name) for name in self.mapping(key)}

    def numbers(self, key: str) -> dict[str, float]:
        fields = self.object(key)
        return {name: fields.number(name) for name in self.mapping(key)}

    def strings(self, key: str) -> tuple[str, ...]:
        value = self.get(key, list)
        if not all(isinstance(item, str) for item in value):
            raise BundleError(f"manifest.json: {self._where}.{key} must be strings; got {value}")
        return tuple(value)

    def matrix(self, key: str) -> tuple[tuple[float, ...], ...]:
        value = self.get(key, list)
        try:
            rows = tuple(tuple(map(float, row)) for row in value)
        except (TypeError, ValueError):
            rows = ()
        if [len(row) for row in rows] != [4] * 4 or not all(map(math.isfinite, sum(rows, ()))):
            raise BundleError(
                f"manifest.json: {self._where}.{key} must be a finite 4x4 matrix; got {value}"
            )
        return rows


def read_manifest(document: Any) -> Manifest:
    """Check a parsed manifest.json.

    Raises
    ------
    BundleError
        A newer schema, a missing key, a value of the wrong type, or parts that do not fit together.
    """
    top = _Fields(document, "manifest")
    schema = top.whole("schema")
    if schema > SCHEMA:
        raise BundleError(
            f"the bundle has schema {schema}, this scanside reads up to {SCHEMA}; upgrade scanside"
        )
    encoders = top.get("encoders", list)
    manifest = Manifest(
        name=top.text("name"),
        input=_input(top.object("input")),
        encoders=tuple(_encoder(_Fields(e, f"encoders[{i}]")) for i, e in enumerate(encoders)),
        language=_language(top.object("language")) if "language" in top else None,
        diffusion=_diffusion(top.object("diffusion")) if "diffusion" in top else None,
        localization=_localization(top.object("localization")) if "localization" in top else None,
        kernels=_kernels(top.object("kernels")) if "kernels" in top else None,
        files={
            name: FileSpec(
                sha256=f.text("sha256"),
                size_bytes=f.whole("bytes", 0),
                precision=f.text("precision") if "precision" in f else "exact",
            )
            for name, f in (
                (n, _Fields(v, f"files[{n!r}]")) for n, v in top.mapping("files").items()
            )
        },
        golden=_golden(top.object("golden")) if "golden" in top else None,
        raw=document,
    )
    _check_parts(manifest)
    return manifest


def _input(fields: _Fields) -> InputSpec:
    return InputSpec(
        kind=fields.text("kind", KINDS), units=fields.text("units"), scale=fields.number("scale")
    )


def _encoder(fields: _Fields) -> EncoderSpec:
    grid = fields.object("geometry")
    return EncoderSpec(
        role=fields.text("role", ROLES),
        file=fields.text("file"),
        arrays=fields.text("arrays"),
        normalisation=fields.text("normalisation", NORMALISATIONS),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
        geometry=GridSpec(
            grid=grid.shape("grid", 3),
            axcodes=grid.text("axcodes"),
            affine=grid.matrix("affine"),
            cube=grid.whole("cube"),
            pad=grid.text("pad"),
            mapping=grid.text("mapping", MAPPINGS),
            align_corners=grid.flag("align_corners"),
            cubes=grid.whole("cubes"),
        ),
        localizer=_localizer(fields.object("localizer")) if "localizer" in fields else None,
    )


def _localizer(fields: _Fields) -> LocalizerSpec:
    return LocalizerSpec(
        file=fields.text("file"),
        inputs=_tensors(fields, "inputs"),
        outputs=_tensors(fields, "outputs"),
    )


def _tensors(fields: _Fields, key: str) -> dict[str, TensorSpec]:
    names = fields.mapping(key)
    tensors = {name: fields.object(key).object(name) for name in names}
    return {
        n: TensorSpec(shape=t.shape("shape"), dtype=t.text("dtype")) for n, t in tensors.items()
    }


def _language(fields: _Fields) -> LanguageSpec:
    return LanguageSpec(
        file=fields.text("file"),
        quantization=fields.text("quantization"),
        context=fields.whole("context"),
        prefix_length=fields.whole("prefix_length"),
        width=fields.whole("width"),
        instructions=fields.texts("instructions"),
        max_tokens=fields.wholes("max_tokens"),
        projector_sha256=fields.text("projector_sha256"),
        template=_template(fields.object("template")),
    )


def read_template(document: Any) -> TemplateSpec:
    """Check a dialogue template; raises as `read_manifest` does."""
    return _template(_Fields(document, "template"))


def _template(fields: _Fields) -> TemplateSpec:
    return TemplateSpec(
        bos=fields.flag("bos"),
        before_prefix=fields.text("before_prefix"),
        after_prefix=fields.text("after_prefix"),
        first_turn=fields.text("first_turn"),
        next_turn=fields.text("next_turn"),
        answer=fields.text("answer"),
        stop=fields.strings("stop"),
        specials=fields.strings("specials") if "specials" in fields else (),
    )


def _diffusion(fields: _Fields) -> DiffusionSpec:
    tables = fields.object("schedules")
    schedules = {name: tables.shape(name) for name in fields.mapping("schedules")}
    spec = DiffusionSpec(
        prompt_encoder=fields.text("prompt_encoder"),
        prompt_tokenizer=fields.text("prompt_tokenizer"),
        prompt_length=fields.whole("prompt_length", 2),
        pad_id=fields.whole("pad_id", 0),
        bos_id=fields.whole("bos_id", 0),
        eos_id=fields.whole("eos_id", 0),
        unet=fields.text("unet"),
        vae_decoder=fields.text("vae_decoder"),
        preview_decoder=fields.text("preview_decoder") if "preview_decoder" in fields else None,
        image_encoder=fields.text("image_encoder") if "image_encoder" in fields else None,
        arrays=fields.text("arrays"),
        image_size=fields.shape("image_size", 2),
        latent_shape=fields.shape("latent_shape", 3),
        beta=fields.number("beta"),
        mix=fields.text("mix", MIXES),
        guidance=fields.number("guidance"),
        schedules=schedules,
        schedule=fields.text("schedule", tuple(schedules)),
        steps=fields.whole("steps"),
    )
    if spec.steps not in spec.schedules[spec.schedule]:
        raise BundleError(
            f"manifest.json: diffusion.steps is {spec.steps}, but {spec.schedule} has tables for "
            f"{', '.join(map(str, spec.schedules[spec.schedule]))}"
        )
    return spec


def _localization(fields: _Fields) -> LocalizationSpec:
    return LocalizationSpec(
        concept_encoder=fields.text("concept_encoder"),
        tokenizer=fields.text("tokenizer"),
        length=fields.whole("length", 3),
        pad_id=fields.whole("pad_id", 0),
        bos_id=fields.whole("bos_id", 0),
        eos_id=fields.whole("eos_id", 0),
        relu=fields.flag("relu"),
        scaling=fields.text("scaling", SCALINGS),
        fusion=fields.text("fusion", FUSIONS),
        threshold=fields.number("threshold"),
    )


def _kernels(fields: _Fields) -> KernelSpec:
    return KernelSpec(contract=fields.text("contract"), targets=fields.strings("targets"))


def _golden(fields: _Fields) -> GoldenSpec:
    return GoldenSpec(
        volume=fields.text("volume"),
        outputs=fields.text("outputs"),
        texts={task: fields.text(task) for task in TEXT_TASKS if task in fields},
        image_prompt=fields.text("image_prompt"),
        concept=fields.text("concept") if "concept" in fields else None,
        seed=fields.whole("seed", 0),
        steps=fields.whole("steps"),
        schedule=fields.text("schedule"),
        tolerance=fields.numbers("tolerance"),
    )


def _check_parts(manifest: Manifest) -> None:
    if [encoder.role for encoder in manifest.encoders].count("decode") != 1:
        raise BundleError("manifest.json: expected exactly one encoder with the role decode")
    outputs = manifest.encoder.outputs
    if "tokens" not in manifest.encoder.inputs or "clip" not in outputs:
        raise BundleError("manifest.json: the encoder must take tokens and give clip")
    if manifest.localization:
        check_localizers(manifest)
    if manifest.language:
        spec = manifest.language
        _check_output(outputs, "prefix", (1, spec.prefix_length, spec.width), "language")
    if manifest.diffusion:
        _check_output(outputs, "latent", (1, *manifest.diffusion.latent_shape), "diffusion")


def _check_output(outputs: Mapping[str, TensorSpec], name: str, shape: Shape, by: str) -> None:
    found = outputs[name].shape if name in outputs else None
    if found != shape:
        raise BundleError(
            f"manifest.json: {by} takes the encoder's {name} of shape {shape}; it gives {found}"
        )
