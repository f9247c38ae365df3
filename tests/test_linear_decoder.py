"""The linear decoder that the encoder learns from: it is the least-squares one, and imitation tells
how far the read-outs are from it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from scanside.export.reference import sampler as sampler_module
from scanside.export.reference.features import FEATURES, encode
from scanside.export.reference.linear_decoder import NOISE, Imitation, LinearDecoder
from scanside.export.reference.noise import FEATURE_MEAN
from scanside.export.reference.sampler import Sampler
from scanside.export.reference.scenes import draw_scenes

TRIALS = 600


@pytest.fixture(scope="module", autouse=True)
def one_subject():
    """With one subject few trials tell the moments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "SEEN", ("S1",))
        patch.setattr(sampler_module, "POOL", 16)
        yield


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    return Sampler(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def trials(sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Coefficients, and the features of the scenes less their mean."""
    rng = np.random.default_rng(3)
    scenes = draw_scenes(TRIALS, rng)
    features = torch.from_numpy(encode(scenes)) - torch.from_numpy(FEATURE_MEAN).float()
    return sampler.trials(scenes, np.full(TRIALS, NOISE**0.5), rng), features


def test_moments_are_those_of_drawn_trials(sampler: Sampler, trials: tuple[Tensor, Tensor]):
    tokens, features = trials
    cross, covariance = sampler.moments(NOISE)
    drawn = tokens.flatten(1).var(0)
    assert (covariance.diagonal().sum() / drawn.sum()).item() == pytest.approx(1, abs=0.05)
    sampled = features.T @ tokens.flatten(1) / TRIALS
    # Projected on the truth, sampling noise averages out over 67 x 8,576 entries.
    assert ((sampled * cross).sum() / cross.square().sum()).item() == pytest.approx(1, abs=0.05)


def test_the_estimate_is_the_least_squares_one(sampler: Sampler, trials: tuple[Tensor, Tensor]):
    tokens, features = trials
    decoder = LinearDecoder(sampler)
    estimate = decoder(tokens)
    assert estimate.std(0).mean().item() == pytest.approx(1, abs=0.05)
    estimate = estimate * decoder.scale
    # No multiple of a least-squares estimate lies nearer to the truth than the estimate itself.
    slope = (estimate * features).sum() / estimate.square().sum()
    assert slope.item() == pytest.approx(1, abs=0.03)
    assert (estimate - features).square().mean() < 0.3 * features.square().mean()


def test_imitation_is_nothing_when_the_prefix_holds_the_estimate(
    sampler: Sampler, trials: tuple[Tensor, Tensor]
):
    tokens = trials[0][:40]
    places = sampler.places()
    width = 3 * FEATURES
    decoder = LinearDecoder(sampler)
    imitation = Imitation(decoder, places, width)
    estimate = decoder(tokens)
    # A large constant beside the estimate keeps the unit size nearly the same for all.
    prefix = torch.zeros(len(tokens), 1 + len(places), width)
    prefix[..., :FEATURES] = estimate[:, None]
    prefix[..., FEATURES:] = 50.0
    with torch.no_grad():
        for read in (imitation.everything, imitation.own):
            read.weight.zero_()
            read.bias.zero_()
        missed = float(imitation(tokens, prefix))
        assert missed == pytest.approx(2, abs=0.3)  # all of both
        size = prefix.square().mean(-1).sqrt().mean()
        imitation.everything.weight[:, :FEATURES] = torch.eye(FEATURES) * size
        assert float(imitation(tokens, prefix)) < missed - 0.9
