"""ViT3D: the paper's three-dimensional vision transformer over cubes of a brain volume.

The encoder of "Neuro-Vision to Language" (Shen et al., NeurIPS 2024, section 3.2): a transformer
with a class token whose last layer feeds two heads (CLIP vector, VAE latent), and whose penultimate
layer feeds the language model. What the paper leaves open is a field of `ViT3DConfig`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, kw_only=True)
class ViT3DConfig:
    """Sizes and geometry of one encoder; the defaults are the paper's."""

    num_cubes: int
    """Active cubes N, one token each."""
    grid: tuple[int, int, int] = (83, 104, 81)
    """Model grid in voxels, in array order."""
    axcodes: str = "SAR"
    """World direction in which each grid axis grows."""
    affine: tuple[tuple[float, ...], ...] = field(
        default=((0, 0, 1.8, -72.0), (0, 1.8, 0, -108.0), (1.8, 0, 0, -60.0), (0, 0, 0, 1))
    )
    """Nominal model grid to world, millimetres; places heat maps and checks the field of view."""
    cube: int = 14
    """Edge r of a cube in voxels."""
    pad: str = "back"
    """Side on which the grid is padded to whole cubes: back, front or both."""
    keep_fraction: float = 0.05
    """A cube is active when at least this share of its voxels lies in the mask."""
    mapping: str = "resize"
    """How a volume reaches the grid: resize (shape to shape, as in the paper) or affine."""
    align_corners: bool = False
    """Convention of the resize."""
    hidden_size: int = 768
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    head_hidden_size: int = 1024
    """Hidden width of f_wc and f_wv."""
    clip_size: int = 768
    latent_shape: tuple[int, int, int] = (4, 64, 64)
    prefix_size: int = 4096
    """Width of the language model."""
    prefix_hidden_size: int = 4096
    """Hidden width of f_t."""
    prefix_class_token: bool = False
    """Whether the class token of the penultimate layer leads the prefix."""
    input: dict[str, Any] = field(
        default_factory=lambda: {"kind": "beta", "units": "percent signal change", "scale": 1.0}
    )
    """Kind, units and scale of the volumes the encoder was trained on."""

    @property
    def token_size(self) -> int:
        """Voxels of a cube, C = r^3."""
        return self.cube**3

    @property
    def prefix_length(self) -> int:
        """Embeddings handed to the language model, M."""
        return self.num_cubes + int(self.prefix_class_token)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViT3DConfig:
        """Build from `config.json`; an unknown key is a TypeError, a list becomes a tuple."""
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in values.items() if k != "model_type"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise TypeError(f"encoder/config.json has unknown keys {unknown}")
        return cls(**{k: _tuples(v) for k, v in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


class Block(nn.Module):
    """Pre-norm transformer layer; q, k and v are separate, since only then attention is fused."""

    def __init__(self, config: ViT3DConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N+1, D) float -> (B, N+1, D) float."""
        h = self.norm1(x)
        q, k, v = (self._split(p(h)) for p in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N+1, D/heads)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def perceptron(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    """The paper's two-layer perceptron."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))


class ViT3D(nn.Module):
    """Encoder E_b with its heads f_wc (CLIP), f_wv (VAE) and f_t (language)."""

    def __init__(self, config: ViT3DConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        c, h, w = config.latent_shape
        self.patch_embed = nn.Linear(config.token_size, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, config.num_cubes + 1, width))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(width)
        self.f_wc = perceptron(width, config.head_hidden_size, config.clip_size)
        self.f_wv = perceptron(width, config.head_hidden_size, c * h * w)
        self.f_t = perceptron(width, config.prefix_hidden_size, config.prefix_size)
        nn.init.trunc_normal_(self.position, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of the penultimate and of the last layer.

        Parameters
        ----------
        tokens : (B, N, C) float
            Normalised cubes.

        Returns
        -------
        penultimate, last : (B, N+1, D) float
            The class token comes first.
        """
        x = self.patch_embed(tokens)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        penultimate = x
        for block in self.blocks:
            penultimate, x = x, block(x)
        return penultimate, x

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode.

        Parameters
        ----------
        tokens : (B, N, C) float
            Normalised cubes.

        Returns
        -------
        clip : (B, clip_size) float
            f_wc of the last layer's class token, in the units of the CLIP image embedding.
        latent : (B, 4, h, w) float
            f_wv of the last layer's class token, in the diffusion model's latent units.
        prefix : (B, M, prefix_size) float
            t = f_t(h^{Nb-1}): the penultimate layer's tokens as language embeddings.
        """
        return self.heads(*self.features(tokens))

    def heads(self, penultimate: Tensor, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward` gives, from what `features` gives."""
        readout = self.norm(last[:, 0])
        latent = self.f_wv(readout).unflatten(1, self.config.latent_shape)
        first = 0 if self.config.prefix_class_token else 1
        return self.f_wc(readout), latent, self.f_t(penultimate[:, first:])

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write `config.json` and `model.safetensors` with weights of `dtype`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"model_type": "vit3d", **asdict(self.config)}, indent=2)
        (folder / "config.json").write_text(text + "\n")
        save_file(
            {k: v.detach().to(dtype).contiguous() for k, v in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def load(cls, folder: Path) -> ViT3D:
        """Read what `save` wrote; computes in float32 whatever is on disk."""
        config = ViT3DConfig.from_dict(json.loads((folder / "config.json").read_text()))
        model = cls(config)
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
        return model.eval()
