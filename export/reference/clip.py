"""Stage `clip`: an image and a text encoder that share a space, trained on scenes and what is said
about them.

Multi-positive contrastive loss: which text is true of which scene is known exactly, so a batch may
hold scenes that differ in a single attribute, and texts that name one object only. A linear read-
out of the world's features keeps every attribute in the vector.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ..tokenizer_training import train_clip_tokenizer
from .features import FEATURES, encode
from .scenes import COLOURS, IMAGE_SIZE, SHAPES, Scene, Scenes, draw_scenes, render
from .texts import caption, corpus, prompt
from .training import Recipe, train

SIZE = 128
"""Width of both encoders and of the shared space."""
PROMPT_LENGTH = 48
"""Tokens of a text."""
RECIPE = Recipe(steps=1600, batch=128, learning_rate=1e-3, muon_rate=5e-3)
CELL = 21
"""Pixels of an image patch: one cell of the three by three grid, so nine patches and an image
encoder that is quick to train."""
GROUP = 4
"""Scenes that differ in one attribute each from the first of their group."""


class Clip(nn.Module):
    """Image and text encoder with the temperature and the feature read-out that training needs."""

    def __init__(self, vocabulary: int, bos: int, eos: int) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "hidden_size": SIZE,
            "intermediate_size": 4 * SIZE,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "projection_dim": SIZE,
        }
        self.image = CLIPVisionModelWithProjection(
            CLIPVisionConfig(image_size=IMAGE_SIZE, patch_size=CELL, **sizes)
        )
        self.text = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocabulary,
                max_position_embeddings=PROMPT_LENGTH,
                bos_token_id=bos,
                eos_token_id=eos,
                pad_token_id=eos,
                **sizes,
            )
        )
        for model in (self.image, self.text):
            _start(model)
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        self.read_out = nn.Linear(SIZE, FEATURES)

    def images(self, pixels: Tensor) -> Tensor:
        """(B, 3, 64, 64) float in -1..1 -> (B, 128)."""
        return self.image(pixels).image_embeds

    def texts(self, ids: Tensor) -> Tensor:
        """(B, L) int64 -> (B, 128)."""
        return self.text(ids).text_embeds


def _start(model: nn.Module) -> None:
    """Weights to start from: places as strong as contents, and layers of unit gain.

    CLIP's own start is made for deep models and long training: from it this small one has not
    learned where things are after a thousand steps.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif name.endswith("patch_embedding"):
            nn.init.normal_(cast(nn.Conv2d, module).weight, std=0.04)


def pixels(scenes: Scenes) -> Tensor:
    """Pictures of scenes as (B, 3, 64, 64) float32 in -1..1."""
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2).contiguous() * 2 - 1


def neighbours(scenes: Scenes, rng: np.random.Generator) -> Scenes:
    """Each scene followed by three that differ from it in the shape, colour, size or background of
    one thing.
    """
    things = np.repeat(scenes.things, GROUP, 0)
    background = np.repeat(scenes.background, GROUP, 0)
    counts = (things[..., 0] >= 0).sum(1)
    for i in range(len(things)):
        if i % GROUP == 0:
            continue
        slot, what = rng.integers(counts[i]), rng.integers(4)
        if what == 3:
            background[i] = (background[i] + rng.integers(1, 4)) % 4
        else:
            choices = set(range((len(SHAPES), len(COLOURS), 2)[what])) - (
                {int(things[i, slot, 2])} if what == 2 else set(things[i, :, what].tolist())
            )
            things[i, slot, what] = rng.choice(sorted(choices))
    return Scenes(things, background)


def concept(scene: Scene, rng: np.random.Generator) -> tuple[str, str | None, str | None]:
    """A text that names one object, with the colour and shape that it asks for."""
    thing = scene.things[rng.integers(len(scene.things))]
    kind = rng.integers(4)
    if kind == 0:
        return thing.colour, thing.colour, None
    if kind == 1:
        return thing.shape, None, thing.shape
    text = f"{thing.colour} {thing.shape}"
    return (text if kind == 2 else f"a {text}"), thing.colour, thing.shape


def train_clip(checkpoint: Path, work: Path) -> None:
    """Train both encoders; write image encoder, text encoder and tokenizer into the checkpoint's
    diffusion/ and concept/ folders.
    """
    rng = np.random.default_rng(11)
    named = [scenes.named(i) for scenes in [draw_scenes(400, rng)] for i in range(400)]
    tokenizer = train_clip_tokenizer(
        corpus(400, named), checkpoint / "diffusion/tokenizer", 1024, PROMPT_LENGTH
    )
    torch.manual_seed(11)
    ends: Any = tokenizer  # its base class annotates these ids as texts
    model = Clip(len(tokenizer), ends.bos_token_id, ends.eos_token_id)
    state = work / "clip.safetensors"
    train("clip", model, lambda step: clip_loss(model, tokenizer, step), RECIPE, state)
    _unit_variance(model)
    _save(model, tokenizer, checkpoint)
    state.unlink(missing_ok=True)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str], padding: str = "max_length") -> Tensor:
    """Padded token ids (B, L) int64."""
    return tokenizer(
        texts, padding=padding, truncation=True, max_length=PROMPT_LENGTH, return_tensors="pt"
    ).input_ids


def clip_loss(model: Clip, tokenizer: CLIPTokenizer, step: int) -> Tensor:
    """Contrastive and read-out loss of the batch that belongs to a step."""
    rng = np.random.default_rng([12, step])
    scenes = neighbours(draw_scenes(RECIPE.batch // GROUP, rng), rng)
    named = [scenes.named(i) for i in range(len(scenes))]
    whole = [caption(s) if rng.random() < 0.5 else prompt(s) for s in named]
    parts = [concept(named[i], rng) for i in range(0, len(named), GROUP)]
    truth = torch.tensor([[_true_of(part, s) for s in named] for part in parts])  # (B/4, B)
    features = torch.from_numpy(encode(scenes))

    image = model.images(pixels(scenes))
    text = model.texts(token_ids(tokenizer, whole + [part[0] for part in parts], "longest"))
    read = ((model.read_out(image) - features) ** 2).sum(1).mean()
    read = read + ((model.read_out(text[: len(named)]) - features) ** 2).sum(1).mean()
    unit_image, unit_text = (nn.functional.normalize(v, dim=1) for v in (image, text))
    logits = model.log_scale.exp().clamp(max=100) * unit_text @ unit_image.T
    both, some = logits[: len(named)], logits[len(named) :].log_softmax(1)
    target = torch.arange(len(named))
    match = nn.functional.cross_entropy(both, target) + nn.functional.cross_entropy(both.T, target)
    partial = -some.masked_fill(~truth, -torch.inf).logsumexp(1).mean()
    return match + partial + read


def _true_of(part: tuple[str, str | None, str | None], scene: Scene) -> bool:
    _, colour, shape = part
    return any(colour in (None, t.colour) and shape in (None, t.shape) for t in scene.things)


@torch.no_grad()
def _unit_variance(model: Clip) -> None:
    """Scale both projections so that an image vector's elements have unit variance on average, as
    the unCLIP noising expects.
    """
    model.eval()
    vectors = model.images(pixels(draw_scenes(512, np.random.default_rng(13))))
    scale = vectors.std(0).square().mean().sqrt()
    model.image.visual_projection.weight /= scale
    model.text.text_projection.weight /= scale


def _save(model: Clip, tokenizer: CLIPTokenizer, checkpoint: Path) -> None:
    diffusion, concept_folder = checkpoint / "diffusion", checkpoint / "concept"
    model.image.half().save_pretrained(diffusion / "image_encoder")
    model.text.half().save_pretrained(concept_folder)
    tokenizer.save_pretrained(concept_folder)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(diffusion / "feature_extractor")  # fmt: skip
    # The prompt encoder of the diffusion stage is the same text model without its projection.
    plain = CLIPTextModel(model.text.config)
    plain.text_model.load_state_dict(model.text.text_model.state_dict())
    plain.half().save_pretrained(diffusion / "text_encoder")
