"""Convergence of chains: R-hat and effective sample size (Vehtari et al. 2021).

``draws`` are ``(num_chains, num_draws, *dims)``. Each result has shape ``dims`` and is NaN where a
draw is not finite, or where all draws are equal: chains that never move say nothing about mixing.
This is the convention of Stan; arviz counts all such draws as effective. Do not pool chains of
different temperatures: their distributions differ. All results are computed in float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from ebm_dist.samplers import Bounds, Info, State

Draws = NDArray[np.floating[Any]] | Tensor
Floats = NDArray[np.float64]
_FEWEST = 8  # draws, of which the second half has an R-hat


def rhat(draws: Draws) -> Floats:
    """Return split, rank-normalised R-hat: the maximum over the draws and the folded draws.

    Section 3.1 and equation 15. It is about 1 if all halves of all chains have the same
    distribution. Do not use draws with a value above 1.01. Infinite if no chain moves and their
    places differ.
    """
    halves = _split(_array(draws))
    folds = np.abs(halves - np.median(halves, axis=(0, 1)))
    # folds about the median are all equal for draws of two values
    return np.fmax(_plain_rhat(_normal_scores(halves)), _plain_rhat(_normal_scores(folds)))


def ess_bulk(draws: Draws) -> Floats:
    """Return the effective sample size of the rank-normalised draws (section 3.2).

    It measures how well the centre of the distribution is known.
    """
    return _ess(_normal_scores(_split(_array(draws))))


def ess_tail(draws: Draws) -> Floats:
    """Return the smaller effective sample size of the 5% and the 95% quantile (section 4.3).

    A quantile that no draw exceeds, as where most draws are equal, is left out.
    """
    x = _array(draws)
    flat = x.reshape(-1, *x.shape[2:])
    # in integers: a rounded product may be one rank off
    ranks = [percent * (len(flat) - 1) // 100 for percent in (5, 95)]
    low, high = np.partition(flat, ranks, axis=0)[ranks]
    below = (np.where(np.isnan(x), np.nan, x <= threshold) for threshold in (low, high))
    return np.fmin(*(_ess(_split(indicator)) for indicator in below))


def ess_mean(draws: Draws) -> Floats:
    """Return the effective sample size of the mean (section 3.2, without ranks).

    ``var / ess_mean`` is the square of the mean's standard error.
    """
    return _ess(_split(_array(draws)))


def rhat_by_length(groups: Sequence[Draws], num_looks: int = 24) -> list[tuple[int, float]]:
    """Return growing lengths of chains, evenly in the logarithm, and the largest R-hat of each.

    R-hat is that of the second half of the draws so far, thinned to a thousand, over the dimensions
    and the groups ``(num_chains, num_draws, *dims)``; infinity for chains that stay where they are,
    NaN if nothing varies.
    """
    num_draws, curve = len(groups[0][0]), list[tuple[int, float]]()
    for length in np.unique(np.geomspace(min(_FEWEST, num_draws), num_draws, num_looks).round()):
        half = slice(int(length) // 2, int(length), max(1, int(length) // 2000))
        found = np.concatenate([rhat(group[:, half]).reshape(-1) for group in groups])
        curve.append((int(length), float(np.fmax.reduce(found))))
    return curve


def mixed_from(curve: Sequence[tuple[int, float]], limit: float = 1.1) -> int | None:
    """Return the length from which on no R-hat is above the limit; None if the last one is."""
    lengths = list[int]()
    for length, value in reversed(curve):
        if not value <= limit:
            break
        lengths.append(length)
    return lengths[-1] if lengths else None


def _array(draws: Draws) -> Floats:
    x = np.asarray(draws.detach().cpu() if isinstance(draws, Tensor) else draws, np.float64)
    if x.ndim < 2 or x.shape[1] < 4:
        raise ValueError(f"draws must be (num_chains, num_draws >= 4, *dims), not {x.shape}")
    return np.where(np.isfinite(x).all(axis=(0, 1)), x, np.nan)


def _split(x: Floats) -> Floats:
    """Split each chain into two halves; drop the middle draw of an odd number."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _normal_scores(x: Floats) -> Floats:
    """Return normal quantiles of the ranks over all chains; ties have a mean rank (equation 14)."""
    from scipy import stats  # slow to import

    flat = x.reshape(-1, *x.shape[2:])
    ranks = stats.rankdata(flat, axis=0, nan_policy="propagate")
    return np.asarray(stats.norm.ppf((ranks - 3 / 8) / (len(flat) + 1 / 4))).reshape(x.shape)


def _variances(x: Floats) -> tuple[Floats, Floats]:
    """Return mean variance within chains and estimated total variance (equations 1 to 3)."""
    n = x.shape[1]
    within = x.var(axis=1, ddof=1).mean(axis=0)
    between = x.mean(axis=1).var(axis=0, ddof=1) if len(x) > 1 else np.zeros_like(within)
    # exactly 0 in spite of rounding
    within = np.where((x == x[:, :1]).all(axis=(0, 1)), 0, within)
    between = np.where((x == x[:1, :1]).all(axis=(0, 1)), 0, between)
    return within, within * (n - 1) / n + between


def _plain_rhat(x: Floats) -> Floats:
    within, total = _variances(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt(total / within))


def _ess(x: Floats) -> Floats:
    """Return the effective sample size by Geyer's initial monotone positive sequence.

    Equations 10 and 13; Geyer (1992), section 3.3. Autocorrelations are summed in pairs of lags
    (2k, 2k + 1) up to the first negative pair. No pair counts more than the pair before. Of the
    first negative pair, the even lag is added once if it is positive. The result is at most
    ``n log10(n)`` for ``n`` draws. Chains, split in halves, that are stuck at different places have
    a draw each.
    """
    num_chains, n = x.shape[:2]
    within, total = _variances(x)
    constant = total == 0
    length = fft.next_fast_len(2 * n, real=True)
    spectrum = fft.rfft(x - x.mean(axis=1, keepdims=True), length, axis=1)
    autocovariance = fft.irfft(np.abs(spectrum) ** 2, length, axis=1)[:, :n].mean(axis=0) / n
    rho = 1 - (within - autocovariance) / np.where(constant, 1, total)
    rho[0] = 1
    num_pairs = max((n - 3) // 2, 0)  # the last lags average too few products
    pairs = rho[: 2 * num_pairs].reshape(num_pairs, 2, *rho.shape[1:]).sum(axis=1)
    positive = np.logical_and.accumulate(pairs > 0, axis=0)
    monotone = np.where(positive, np.minimum.accumulate(pairs, axis=0), 0)
    last = np.take_along_axis(rho, 2 * positive.sum(axis=0)[None], axis=0)[0]
    tau = -1 + 2 * monotone.sum(axis=0) + np.maximum(last, 0)
    size = num_chains * n
    effective = size / np.maximum(tau, 1 / np.log10(size))
    effective = np.where(within == 0, num_chains / 2, effective)
    return np.where(constant | np.isnan(total), np.nan, effective)


class Report(NamedTuple):
    """Diagnostics of a run of chains."""

    acceptance_rate: float
    """Share of accepted proposals"""
    num_not_finite: int
    """Proposals with an energy or score that was not finite"""
    rhat: float
    """Largest over the dimensions that vary; NaN if none does"""
    ess_bulk: float
    """Smallest over the dimensions that vary; NaN if none does"""
    ess_tail: float
    """Smallest over the dimensions that vary; NaN if none does"""
    num_constant: int
    """Dimensions where all draws of all chains are equal"""
    moved: float
    """Mean Euclidean distance between consecutive draws"""
    at_bounds: float
    """Share of coordinates at a bound; 0 without bounds"""
    energy: Floats
    """``(num_draws,)`` mean energy over the chains"""


class Trace:
    """Observer of :func:`ebm_dist.samplers.run_chain` that stores positions and energies.

    It stores them after every ``every``-th step.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.positions: list[Tensor] = []
        self.energies: list[Tensor] = []
        self.accepted: list[Tensor] = []
        self.not_finite: list[Tensor] = []

    def __call__(self, step: int, state: State, info: Info) -> None:
        self.accepted.append(info.is_accepted.float().mean())
        if info.is_finite is not None:
            self.not_finite.append((~info.is_finite).sum())
        if (step + 1) % self.every == 0:
            self.positions.append(state.position.clone())
            self.energies.append(info.energy)

    def draws(self) -> Tensor:
        """Return the stored positions ``(num_chains, num_draws, *dims)``."""
        return torch.stack(self.positions, dim=1)

    def report(self, bounds: Bounds = None) -> Report:
        """Compute the diagnostics; ``bounds`` are those that positions were clamped to."""
        x = self.draws()
        varies = (x != x[:1, :1]).flatten(0, 1).any(dim=0).cpu().numpy()
        at_bounds = (
            0.0 if bounds is None else ((x <= bounds[0]) | (x >= bounds[1])).double().mean().item()
        )
        return Report(
            acceptance_rate=torch.stack(self.accepted).mean().item(),
            num_not_finite=int(sum(count.item() for count in self.not_finite)),
            rhat=float(np.max(rhat(x)[varies])) if varies.any() else np.nan,
            ess_bulk=float(np.min(ess_bulk(x)[varies])) if varies.any() else np.nan,
            ess_tail=float(np.min(ess_tail(x)[varies])) if varies.any() else np.nan,
            num_constant=int((~varies).sum()),
            moved=x.diff(dim=1).flatten(2).norm(dim=2).mean().item(),
            at_bounds=at_bounds,
            energy=torch.stack(self.energies).double().mean(dim=1).cpu().numpy(),
        )
