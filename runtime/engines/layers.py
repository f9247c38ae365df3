"""What a builder made of a graph: its finished layers, read from its own log.

A finished engine cannot be looked into without a GPU, but the builder lists its layers as it ends:

    Name: _gemm_mha_v2_myl0_7, LayerType: kgen, Inputs: ...

A layer's name is made of the operations that were fused into it, so attention in one piece, and a
normalisation in one piece, can be counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_LAYER = re.compile(r"^Name: ([^,]+), LayerType: (\w+)", re.MULTILINE)
_ATTENTION = re.compile(r"mha|attention_v?\d*_?fused|fmha", re.IGNORECASE)
_NORMALISATION = re.compile(r"MeanSubMulMean|Gnor|Inor|Norm")
_SOFTMAX = re.compile(r"ExpSum|Softmax", re.IGNORECASE)
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
_NO_WORK = ("signal", "wait")


def count_layers(log: Iterable[str]) -> dict[str, int]:
    """How often each kind of layer occurs.

    Returns
    -------
    layers : dict
        attention: fused, one layer for the products and the softmax between; softmax: what is left
        of attention in pieces; normalisation: each in one layer; product: other matrix products;
        convolution; other.
    """
    found = Counter[str]()
    for text in log:
        for name, kind in _LAYER.findall(text):
            if kind not in _NO_WORK:
                found[_kind(name, kind)] += 1
    return dict(sorted(found.items()))


def _kind(name: str, kind: str) -> str:
    if _ATTENTION.search(name):
        return "attention"
    if _NORMALISATION.search(name):
        return "normalisation"
    if _SOFTMAX.search(name):
        return "softmax"
    if kind == "correlation" or "Corr" in name or "Conv" in name:
        return "convolution"
    return "product" if kind == "gemm" or "_Fc" in name else "other"


def memory_of(log: Iterable[str]) -> dict[str, int]:
    """Bytes of device memory that an engine needs, as its builder says: weights and activation."""
    return {kind.lower(): int(size) for text in log for kind, size in _MEMORY.findall(text)}
