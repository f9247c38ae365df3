"""JSON schemas as grammars: what is written under them parses and keeps them."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from scanside.runtime.bundle import REFERENCE
from scanside.runtime.errors import InputError
from scanside.runtime.grammar import json_grammar
from scanside.runtime.llama import LlamaModel
from scanside.runtime.sampling import Sampling, TokenChooser

SCENE = {
    "title": "scene",
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "bläu"]},
        "count": {"type": "integer"},
        "note": {"type": "string", "maxLength": 4},
        "places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "maxItems": 2},
        "sure": {"type": ["boolean", "null"]},
    },
    "required": ["colour", "count", "places"],
    "$defs": {"place": {"anyOf": [{"const": "left"}, {"const": "right"}]}},
}


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaModel]:
    opened = LlamaModel(REFERENCE / "language.gguf")
    yield opened
    opened.close()


def written(model: LlamaModel, schema: object, seed: int, most: int = 400) -> str:
    """Text of a model that wants nothing in particular, except to come to an end."""
    chooser = TokenChooser(model, Sampling(temperature=1, seed=seed), json_grammar(schema))
    logits = np.random.default_rng(seed).normal(0, 1, model.vocabulary_size).astype(np.float32)
    for token in range(model.vocabulary_size):
        logits[token] += 4 * any(mark in model.piece(token) for mark in (b'"', b"}", b"]"))
        logits[token] += 20 * model.ends(token)
    raw = b""
    for _ in range(most):
        token = chooser.choose(logits)
        if model.ends(token):
            return raw.decode(errors="replace")  # as every text is; the grammar sees bytes
        raw += model.piece(token)
    raise AssertionError(f"no end: {raw!r}")


@pytest.mark.parametrize("seed", range(8))
def test_what_is_written_parses_and_keeps_the_schema(model: LlamaModel, seed: int):
    document = json.loads(written(model, SCENE, seed))
    assert {"colour", "count", "places"} <= set(document) <= set(SCENE["properties"])
    assert document["colour"] in ("red", "bläu")
    assert isinstance(document["count"], int)
    assert len(document["places"]) <= 2
    assert set(document["places"]) <= {"left", "right"}
    assert len(document.get("note", "")) <= 4
    assert document.get("sure") in (True, False, None)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("schema", [{"type": "string"}, '{"type": "string", "maxLength": 9}'])
def test_strings_hold_no_raw_line_breaks(model: LlamaModel, schema: object, seed: int):
    assert isinstance(json.loads(written(model, schema, seed)), str)


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ("{", "'schema' must be a JSON schema; it is not JSON"),
        ("[]", r"a JSON schema must be an object; got \[\]"),
        ({"type": object()}, "it is not JSON"),
        ({"type": "colour"}, "cannot be turned into a grammar"),
        ({"type": "integer", "minimum": 3}, "asks for minimum in one place, which cannot"),
        ({"items": {"type": "number", "multipleOf": 2}}, "asks for multipleOf"),
        ({"anyOf": [{"type": "string"}], "enum": ["a"]}, "asks for anyOf, enum in one place"),
        ({"oneOf": [{"type": "string"}]}, "asks for oneOf"),
        ({"type": ["string", "null"], "maxLength": 3}, "asks for maxLength"),
        ({"type": "array", "minItems": 2}, "asks for minItems"),
        ({"properties": {"a": {}}, "required": ["b"]}, "requires 'b', but has no property of it"),
        ({"type": "string", "format": "email"}, "asks for the format 'email'; known are date"),
        ({"$ref": "https://example.org/schema"}, "cannot be turned into a grammar"),
        ({"$ref": "#/$defs/none"}, "cannot be turned into a grammar"),
        ({"type": "string", "pattern": "unanchored"}, "cannot be turned into a grammar"),
    ],
)
def test_what_cannot_be_kept_is_refused(schema: object, sentence: str):
    with pytest.raises(InputError, match=sentence):
        json_grammar(schema)


def test_a_schema_without_a_bottom_is_refused():
    schema: dict[str, object] = {"type": "string"}
    for _ in range(2000):
        schema = {"items": schema}
    with pytest.raises(InputError, match=r"nested too deeply|is not JSON"):
        json_grammar(schema)
