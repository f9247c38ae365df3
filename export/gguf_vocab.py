"""A Hugging Face tokenizer as GGUF metadata, so that llama.cpp gives the same token ids.

Two families: byte-level BPE (Llama 3, `tokenizer.ggml.model` "gpt2") and SentencePiece BPE (Llama
2, Vicuna; "llama"). Read from `tokenizer.json`, or for SentencePiece from `tokenizer.model` where
only that is there. What llama.cpp would tokenise differently is refused.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from ..runtime.errors import CheckpointError

Json = dict[str, Any]
TokenType = gguf.TokenType

# llama.cpp's name of the splitter that runs before the merges, by its regular expression.
_PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}


@dataclass(slots=True)
class Vocabulary:
    """Token list of a GGUF file; position is the id."""

    model: str
    """"gpt2" for byte-level BPE, "llama" for SentencePiece."""
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list[float])
    """Only for SentencePiece: a pair with a higher score merges first."""
    pre: str = "default"
    add_space_prefix: bool = False

    def write(self, writer: gguf.GGUFWriter, folder: Path) -> None:
        """Add tokens, merges, special ids and chat template to a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space_prefix)
        # It warns about the pair template of Llama 3's own tokenizers, which nothing here uses.
        logging.getLogger("gguf").setLevel(logging.ERROR)
        specials = gguf.SpecialVocab(
            folder, load_merges=self.model == "gpt2", n_vocab=len(self.tokens)
        )
        specials.add_to_gguf(writer, quiet=True)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a Hugging Face directory.

    Parameters
    ----------
    folder : Path
        With `tokenizer.json` or `tokenizer.model`.
    size : int
        Rows of the embedding matrix; ids that the tokenizer does not use are filled up as unused.

    Raises
    ------
    CheckpointError
        No tokenizer, another kind of tokenizer, more tokens than embeddings, or an unknown
        pre-tokenizer.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        vocabulary = _from_tokenizer_json(json.loads(path.read_text(encoding="utf-8")))
    elif (folder / "tokenizer.model").is_file():
        vocabulary = _from_sentencepiece(folder)
    else:
        raise CheckpointError(f"{folder} has no tokenizer.json and no tokenizer.model")
    if len(vocabulary.tokens) > size:
        raise CheckpointError(
            f"llm: the tokenizer has {len(vocabulary.tokens)} tokens, "
            f"the embedding matrix {size} rows"
        )
    for i in range(len(vocabulary.tokens), size):
        _append(vocabulary, f"[PAD{i}]", TokenType.UNUSED)
    return vocabulary


def _append(vocabulary: Vocabulary, token: str, kind: TokenType) -> None:
    vocabulary.tokens.append(token)
    vocabulary.types.append(kind)
    if vocabulary.scores:
        vocabulary.scores.append(-1000.0)


def _from_tokenizer_json(data: Json) -> Vocabulary:
    model: Json = data["model"]
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"llm/tokenizer.json is a {model.get('type')} tokenizer; supported are "
            "byte-level BPE (Llama 3) and SentencePiece BPE (Llama 2, Vicuna)"
        )
    by_id = {i: token for token, i in model["vocab"].items()}
    added = {a["id"]: a for a in data.get("added_tokens", [])}
    by_id |= {i: a["content"] for i, a in added.items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]
    types = [_type(i, t, i in by_id, added.get(i), model) for i, t in enumerate(tokens)]
    if model.get("byte_fallback"):
        _check_normalizers(data, {"Prepend", "Replace", "Metaspace"})
        return Vocabulary(
            model="llama",
            tokens=tokens,
            types=types,
            scores=_scores_of_merges(tokens, model["merges"]),
            add_space_prefix=_prepends_space(data),
        )
    _check_normalizers(data, {"Split", "ByteLevel"})
    return Vocabulary(model="gpt2", tokens=tokens, types=types, pre=_pre_tokenizer(data))


def _type(i: int, token: str, known: bool, added: Json | None, model: Json) -> int:
    if not known:
        return TokenType.UNUSED
    if token == model.get("unk_token") and model.get("byte_fallback"):
        return TokenType.UNKNOWN
    if added is not None:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _scores_of_merges(tokens: list[str], merges: list[Any]) -> list[float]:
    """SentencePiece merges the pair with the highest score; minus the rank gives that order."""
    rank: dict[str, int] = {}
    for i, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault("".join(pair), i)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _prepends_space(data: Json) -> bool:
    return any(
        p["type"] == "Prepend"
        or (p["type"] == "Metaspace" and p.get("prepend_scheme", "always") != "never")
        for p in _steps(data)
    )


def _steps(data: Json) -> list[Json]:
    """What happens to a text before the merges, one step behind the other."""
    parts: list[Json] = []
    for key in ("normalizer", "pre_tokenizer"):
        part: Json = data.get(key) or {}
        parts += part.get("normalizers") or part.get("pretokenizers") or ([part] if part else [])
    return parts


def _check_normalizers(data: Json, known: set[str]) -> None:
    """llama.cpp changes no letter of a text."""
    for step in _steps(data):
        if step["type"] not in known or step.get("add_prefix_space"):
            raise CheckpointError(
                f"llm/tokenizer.json changes a text by {step['type']!r} before it is cut, which "
                "llama.cpp does not do; supported are the tokenizers of Llama 2, Vicuna and Llama 3"
            )


def _pre_tokenizer(data: Json) -> str:
    part: Json = data.get("pre_tokenizer") or {}
    for step in part.get("pretokenizers") or [part]:
        if step.get("type") == "Split":
            pattern = step["pattern"].get("Regex", "")
            if pattern in _PRE_TOKENIZERS:
                return _PRE_TOKENIZERS[pattern]
            raise CheckpointError(
                f"llm/tokenizer.json splits text by {pattern!r}, for which no llama.cpp "
                "pre-tokenizer is known here; supported is Llama 3's"
            )
    raise CheckpointError(
        "llm/tokenizer.json has no Split pre-tokenizer; supported byte-level BPE is Llama 3's"
    )


def _from_sentencepiece(folder: Path) -> Vocabulary:
    from transformers.convert_slow_tokenizer import import_protobuf

    definitions: Any = import_protobuf()
    proto = definitions.ModelProto()
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    _check_sentencepiece(proto)
    # SentencePiece numbers its piece types as GGUF does
    vocabulary = Vocabulary(
        model="llama",
        tokens=[p.piece for p in proto.pieces],
        types=[int(p.type) for p in proto.pieces],
        scores=[float(p.score) for p in proto.pieces],
        add_space_prefix=bool(proto.normalizer_spec.add_dummy_prefix),
    )
    for i, (token, special) in sorted(_added_tokens(folder).items()):
        for unused in range(len(vocabulary.tokens), i):
            _append(vocabulary, f"[PAD{unused}]", TokenType.UNUSED)
        if i == len(vocabulary.tokens):
            _append(vocabulary, token, TokenType.CONTROL if special else TokenType.USER_DEFINED)
    return vocabulary


def _check_sentencepiece(proto: Any) -> None:
    trained, normal = proto.trainer_spec, proto.normalizer_spec
    wrong = {
        "cuts by probability (unigram), not by merges": trained.model_type != trained.BPE,
        f"normalises text ({normal.name})": bool(normal.precompiled_charsmap),
        "drops repeated spaces": normal.remove_extra_whitespaces,
        "does not fall back to bytes": not trained.byte_fallback,
    }
    for what, found in wrong.items():
        if found:
            raise CheckpointError(
                f"llm/tokenizer.model {what}, as llama.cpp would not; "
                "supported are the tokenizers of Llama 2 and Vicuna"
            )


def _added_tokens(folder: Path) -> dict[int, tuple[str, bool]]:
    """Tokens that stand beside tokenizer.model: id -> text, and whether it is special."""
    found: dict[int, tuple[str, bool]] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        stated: Json = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "added_tokens.json":
            found |= {i: (token, False) for token, i in stated.items()}
        else:
            listed: dict[str, Json] = stated.get("added_tokens_decoder", {})
            found |= {int(i): (one["content"], one["special"]) for i, one in listed.items()}
    return found
