"""JSON schemas as grammars of llama.cpp, which hold a text to a form while it is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import InputError

# A condition of a schema, and what may stand beside it. The converter would silently drop others.
_CONDITIONS: dict[str, tuple[str, ...]] = {
    "$ref": (),
    "anyOf": (),
    "const": (),
    "enum": (),
    "properties": ("required", "additionalProperties"),
    "additionalProperties": (),
    "items": ("minItems", "maxItems"),
    "prefixItems": (),
    "pattern": (),
    "format": (),
    "minLength": ("maxLength",),
    "maxLength": (),
}
_FREE = {"type", "$defs", "definitions"} | {
    *("$schema", "$id", "$comment", "title", "description", "default", "examples"),
}
_FORMATS = ("date", "time", "date-time", *(f"uuid{n}" for n in ("", *range(1, 6))))
# The converter lets line breaks stand in a string as they are, which JSON does not.
_CHARACTER = (r'char ::= [^"\\] |', r'char ::= [^"\\\x00-\x1F\x7F] |')


def json_grammar(schema: Mapping[str, Any] | str) -> str:
    """A grammar of exactly the JSON documents that a schema allows.

    Parameters
    ----------
    schema : mapping or str
        A JSON schema, or its text.

    Returns
    -------
    grammar : str
        In llama.cpp's notation, GBNF.

    Raises
    ------
    InputError
        No JSON schema, or one with a condition that cannot be kept while the text is written.
    """
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    document = _parsed(schema)
    try:
        for part in _parts(document):
            _check_kept(part)
        grammar = json_schema_to_gbnf(json.dumps(document))
    except InputError:
        raise
    except (AssertionError, ValueError, LookupError, TypeError, AttributeError) as exc:
        raise InputError(f"the JSON schema cannot be turned into a grammar ({exc})") from exc
    except RecursionError as exc:
        raise InputError("the JSON schema is nested too deeply") from exc
    return grammar.replace(*_CHARACTER)


def _parsed(schema: Mapping[str, Any] | str) -> Any:
    try:
        return json.loads(schema if isinstance(schema, str) else json.dumps(dict(schema)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise InputError(f"'schema' must be a JSON schema; it is not JSON ({exc})") from exc


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and every schema inside it."""
    if not isinstance(schema, Mapping):
        raise InputError(f"a JSON schema must be an object; got {schema!r}")
    yield schema
    for key in ("properties", "$defs", "definitions"):
        for inner in schema.get(key, {}).values():
            yield from _parts(inner)
    for key in ("items", "prefixItems", "anyOf", "additionalProperties"):
        inner = schema.get(key, [])
        for one in inner if isinstance(inner, list) else [inner]:
            if key != "additionalProperties" or not isinstance(one, bool):
                yield from _parts(one)


def _check_kept(schema: Mapping[str, Any]) -> None:
    conditions = set(schema) - _FREE
    kept = any(
        condition in conditions and conditions <= {condition, *beside}
        for condition, beside in _CONDITIONS.items()
    )
    if conditions and (not kept or isinstance(schema.get("type"), list)):
        raise InputError(
            f"the JSON schema asks for {', '.join(sorted(conditions))} in one place, which cannot "
            "all be kept while a text is written; ask for less, and check the document that comes"
        )
    missing = sorted(set(schema.get("required", [])) - set(schema.get("properties", {})))
    if missing:
        raise InputError(f"the JSON schema requires {missing[0]!r}, but has no property of it")
    if schema.get("format", _FORMATS[0]) not in _FORMATS:
        raise InputError(
            f"the JSON schema asks for the format {schema['format']!r}; known are "
            f"{', '.join(_FORMATS)}"
        )
