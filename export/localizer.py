"""Concept localization as a graph: where in the brain the encoder's CLIP vector comes from.

GradCAM (Selvaraju et al. 2017, arXiv 1610.02391) on the encoder's penultimate layer, as in
section 4.4 of "Neuro-Vision to Language": the score is how near the decoded CLIP vector is to a
concept's text vector, and its gradient with respect to the tokens of the penultimate layer says how
much each cube speaks for the concept. A graph has no autograd, so the gradient is traced into it:
the last layer and f_wc, forwards and backwards.

Only the class token is read, so of the last layer only its row is computed; and a key is met by one
query alone, so the query is taken to the cubes rather than every cube to a key. Both are the same
numbers as `ViT3D`'s, and the cost of a further concept is a few products with vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from ..runtime.errors import CheckpointError
from ..runtime.localization.choices import BASELINES, CAMS, FUSIONS, LAYERS, SCALINGS, SCORES
from .vit3d import Block, ViT3D

CONCEPTS = 8
"""Concepts that one run of a localizer takes; a caller fills up with zeros, or runs it again."""
_LEAST_LENGTH = 1e-6
"""Of a concept's vector; a row of zeros is no concept, and its relevance is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalizationSettings:
    """What the paper leaves open about localization; `concept/localization.json` holds others."""

    score: str = "cosine"
    """Whose gradient is taken: cosine, or dot, between decoded vector and unit concept vector."""
    cam: str = "gradcam"
    """gradcam weighs a token's channels by their mean gradient over the cubes; hirescam by the
    gradient at the cube itself (Draelos & Carin 2020, arXiv 2011.08891)."""
    layer: str = "normed"
    """Whose tokens: the penultimate layer's output, or normed, the same as the last layer's
    attention reads them. Attention does not see a token's length, so hirescam of the output is all
    but zero."""
    baseline: str = "mean"
    """What a token is measured from: what the encoder makes of the mean brain, or none. A token
    says first of all where its cube lies, which is the same in every volume."""
    relu: bool = True
    """Keep only what speaks for the concept."""
    scaling: str = "max"
    """Of a finished map: max (divided by its largest value), minmax, or none."""
    fusion: str = "mean"
    """How the maps of several encoders become one, each scaled to its largest value first: mean,
    max, or others, the mean without the encoder that decodes, where its map says little."""
    threshold: float = 0.5
    """From which value of a scaled map on a voxel counts as located."""

    def __post_init__(self) -> None:
        choices = {
            "score": SCORES,
            "cam": CAMS,
            "layer": LAYERS,
            "baseline": BASELINES,
            "scaling": SCALINGS,
            "fusion": FUSIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise CheckpointError(
                    f"concept/localization.json: {name} must be one of {', '.join(known)}; "
                    f"got {getattr(self, name)!r}"
                )
        if not 0 < self.threshold <= 1:
            raise CheckpointError(
                "concept/localization.json: threshold must be above 0 and at most 1; "
                f"got {self.threshold}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LocalizationSettings:
        """Build from a checkpoint's `concept/localization.json`; unknown keys: CheckpointError."""
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise CheckpointError(
                f"concept/localization.json has unknown keys {unknown}; "
                f"expected of {', '.join(known)}"
            )
        return cls(**values)


class EncoderWithHidden(nn.Module):
    """The encoder's three heads, and the penultimate layer that a localizer takes."""

    def __init__(self, encoder: ViT3D) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(1, N, C) float32 -> clip, latent, prefix as `ViT3D`, and hidden (1, N+1, D)."""
        penultimate, last = self.encoder.features(tokens)
        return (*self.encoder.heads(penultimate, last), penultimate)


class Trunk(nn.Module):
    """An encoder that only localizes, up to its penultimate layer."""

    def __init__(self, encoder: ViT3D) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """(1, N, C) float32 -> (1, N+1, D) float32."""
        return self.encoder.features(tokens)[0]


class Localizer(nn.Module):
    """Last layer and f_wc, forwards and backwards.

    Parameters
    ----------
    encoder : ViT3D
    settings : LocalizationSettings
        `score`, `cam`, `layer` and `baseline`.
    """

    baseline: Tensor

    def __init__(self, encoder: ViT3D, settings: LocalizationSettings) -> None:
        super().__init__()
        self.block = last_block(encoder)
        self.norm = encoder.norm
        self.f_wc = encoder.f_wc
        self._settings = settings
        self.register_buffer("baseline", _baseline(encoder, settings))  # (N, D)

    def forward(self, hidden: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
        """Relevance of every cube to every concept.

        Parameters
        ----------
        hidden : (1, N+1, D) float32
            The encoder's penultimate layer, class token first.
        concepts : (K, E) float32
            CLIP text vectors of any length; rows of zeros for none.

        Returns
        -------
        relevance : (K, N) float32
            Signed, in no units.
        similarity : (K,) float32
            Cosine between decoded vector and concept.
        """
        lengths = concepts.norm(dim=1, keepdim=True).clamp(min=_LEAST_LENGTH)
        tokens = hidden[:, 1:]
        if self._settings.layer == "normed":
            tokens = self.block.norm1(tokens)
        # one row of cubes for each concept, (K, N, D), so that one pass serves all
        gradients, similarity = torch.func.grad(self._scores, has_aux=True)(
            tokens.repeat(len(concepts), 1, 1), hidden[:, 0], concepts / lengths
        )
        tokens = tokens[0] - self.baseline
        if self._settings.cam == "gradcam":
            return gradients.mean(1) @ tokens.T, similarity
        return (gradients * tokens).sum(2), similarity

    def traced(self, hidden: Tensor, concepts: Tensor) -> nn.Module:
        """The same module as plain operators, with its gradient written out: what export takes.

        Traced here, since torch.export looks into no gradient of a fused operator.
        """
        for parameter in self.parameters():
            parameter.requires_grad_(False)

        def relevance(hidden: Tensor, concepts: Tensor) -> tuple[Tensor, Tensor]:
            return self(hidden, concepts)

        return make_fx(relevance)(hidden, concepts)

    def _scores(self, cubes: Tensor, class_token: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of all scores, and the cosines: each row's gradient is that of its own score."""
        clip = self.clip(cubes, class_token)
        dot = (clip * units).sum(1)
        cosine = dot / clip.norm(dim=1)
        return (dot if self._settings.score == "dot" else cosine).sum(), cosine

    def clip(self, cubes: Tensor, class_token: Tensor) -> Tensor:
        """Decoded CLIP vectors (K, E) of `layer`'s cubes (K, N, D) and the class token (1, D)."""
        block = self.block
        normed = cubes if self._settings.layer == "normed" else block.norm1(cubes)
        heads, width = block.heads, cubes.shape[2]
        first = block.norm1(class_token)
        query = block.q(first).unflatten(1, (heads, 1, -1))  # (1, heads, 1, D/heads)
        # (1, heads, D); the keys' bias is the same for every cube, so softmax does not see it
        asked = (query @ block.k.weight.view(heads, -1, width)).squeeze(2)
        h = torch.cat([first[None].repeat(len(cubes), 1, 1), normed], dim=1)
        scale = (width // heads) ** -0.5
        attention = (asked @ h.transpose(1, 2) * scale).softmax(dim=2)  # (K, heads, N+1)
        mixed = (attention @ h).permute(1, 2, 0)  # (heads, D, K)
        values = block.v.weight.view(heads, -1, width) @ mixed  # (heads, D/heads, K)
        values = values.flatten(0, 1).T + block.v.bias
        x = class_token + block.out(values)
        x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
        return self.f_wc(self.norm(x))


@torch.no_grad()
def _baseline(encoder: ViT3D, settings: LocalizationSettings) -> Tensor:
    """What tokens are measured from, (N, D): the mean brain's, whose z-scores are all 0.

    Rounded to half precision, which is stored in half the bytes.
    """
    config = encoder.config
    tokens = encoder.features(torch.zeros(1, config.num_cubes, config.token_size))[0][0, 1:]
    if settings.baseline == "none":
        return torch.zeros_like(tokens)
    tokens = last_block(encoder).norm1(tokens) if settings.layer == "normed" else tokens
    return tokens.half().float()


def last_block(encoder: ViT3D) -> Block:
    """The layer behind the penultimate one."""
    last = encoder.blocks[-1]
    assert isinstance(last, Block)
    return last
