"""The best linear decoder of the seen subjects' trials, and how the encoder learns from it.

True scenes are a noisy teacher: most of what a single trial's loss tells is the trial's noise. What
a linear decoder estimates from the trial is free of noise, a plain function of the same cubes, so
an encoder learns to whiten and add up its cubes in hundreds of steps instead of many thousands. The
paper's losses and the texts then teach what lies beyond.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import FEATURES, PER_PLACE
from .sampler import Sampler
from .scenes import PLACES

NOISE = 0.7
"""Variance of the noise that the decoder expects: between the mean of three trials and one."""
IN_PLACES = PER_PLACE * len(PLACES)


class LinearDecoder:
    """Least-squares estimate of a scene's features from a trial of any seen subject.

    With Cov over scenes, noise and subjects: W = Cov(f, x) Cov(x)^-1, in closed form from the
    simulator's linear maps, as the ridge regression on endless trials would find it. It knows
    nothing of the unseen subjects.

    Attributes
    ----------
    scale : (67,) float32
        Standard deviation of each feature's estimate over trials.
    """

    def __init__(self, sampler: Sampler) -> None:
        cross, covariance = sampler.moments(NOISE)
        covariance.diagonal().add_(1e-4 * covariance.diagonal().mean())
        self._weights = torch.cholesky_solve(cross.T, torch.linalg.cholesky(covariance))
        self.scale = (cross * self._weights.T).sum(1).sqrt()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Estimates (B, 67) of trials (B, N, 128), less their mean, each feature of unit variance
        over trials.
        """
        # Large terms cancel in the sum, so half precision would not do.
        with torch.autocast("cpu", enabled=False):
            return tokens.float().flatten(1) @ self._weights / self.scale


class Imitation(nn.Module):
    """Linear read-outs of the prefix that tell what the linear decoder estimates; thrown away after
    training.

    The class token's embedding tells all features, a cube's those of its place and the background.

    Parameters
    ----------
    decoder : LinearDecoder
    places : (N,) int64
        The place that each cube sees best.
    width : int
        Of the prefix.
    """

    def __init__(self, decoder: LinearDecoder, places: Tensor, width: int) -> None:
        super().__init__()
        self._decoder, self._places = decoder, places
        self.everything = nn.Linear(width, FEATURES)
        self.own = nn.Linear(width, PER_PLACE + FEATURES - IN_PLACES)

    def forward(self, tokens: Tensor, prefix: Tensor) -> Tensor:
        """Share of the estimates' variance that the read-outs miss, summed over both.

        Parameters
        ----------
        tokens : (B, N, 128) float
            Pattern coefficients.
        prefix : (B, N+1, width) float
            What the encoder made of them. Read at unit size, as the language model's first layer
            does.
        """
        estimate = self._decoder(tokens)
        at_places = estimate[:, :IN_PLACES].unflatten(1, (len(PLACES), PER_PLACE))
        background = estimate[:, None, IN_PLACES:].expand(-1, len(self._places), -1)
        own = torch.cat([at_places[:, self._places], background], 2)
        unit = F.rms_norm(prefix, prefix.shape[-1:])
        told = self.everything(unit[:, 0]).float(), self.own(unit[:, 1:]).float()
        return F.mse_loss(told[0], estimate) + F.mse_loss(told[1], own)
