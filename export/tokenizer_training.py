"""Small tokenizers made offline, in the two file formats that the checkpoint holds.

`train_llama_tokenizer` writes a byte-level BPE with Llama 3's pre-tokenizer (`tokenizer.json`);
`train_clip_tokenizer` writes `vocab.json` and `merges.txt`, as CLIPTokenizer reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
CLIP_BOS, CLIP_EOS = "<|startoftext|>", "<|endoftext|>"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def _train(
    texts: Iterable[str], pattern: str, specials: list[str], vocab_size: int, suffix: str
) -> Tokenizer:
    model = models.BPE(end_of_word_suffix=suffix) if suffix else models.BPE(ignore_merges=True)
    tokenizer = Tokenizer(model)
    behaviour, invert = ("removed", True) if suffix else ("isolated", False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behaviour, invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    options: dict[str, Any] = {"end_of_word_suffix": suffix} if suffix else {}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_llama_tokenizer(
    texts: Iterable[str], folder: Path, vocab_size: int
) -> PreTrainedTokenizerFast:
    """Train a Llama-3-style tokenizer and save it with `tokenizer_config.json`.

    Parameters
    ----------
    texts : iterable of str
        The corpus; any UTF-8 text can be encoded afterwards, since all 256 bytes are in the
        vocabulary.
    folder : Path
        Receives the files.
    vocab_size : int
        Most entries, the two specials and 256 bytes included.
    """
    tokenizer = _train(texts, _LLAMA3_SPLIT, [BOS, EOS], vocab_size, "")
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    return fast


def train_clip_tokenizer(
    texts: Iterable[str], folder: Path, vocab_size: int, max_length: int
) -> CLIPTokenizer:
    """Train a CLIP-style tokenizer (lower case, end-of-word suffix) and save it.

    Parameters
    ----------
    vocab_size : int
        Most entries; 514 of them are the bytes, the bytes at the end of a word, and the two
        specials.
    max_length : int
        Tokens of a padded prompt, specials included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = _train((t.lower() for t in texts), _CLIP_SPLIT, [], vocab_size, "</w>")
    model = json.loads(trained.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(m) for m in model["merges"]][: vocab_size - 2 * len(alphabet) - 2]
    # CLIP's own order; the specials close the list, so that the end of text has the highest id.
    entries = alphabet + [c + "</w>" for c in alphabet] + ["".join(m) for m in merges]
    entries = list(dict.fromkeys(entries)) + [CLIP_BOS, CLIP_EOS]
    vocab = {token: i for i, token in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=max_length
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
