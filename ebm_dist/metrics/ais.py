"""Likelihood of a restricted Boltzmann machine: exact, or by annealed importance sampling (AIS).

Salakhutdinov & Murray (2008), with ``a`` the biases of a base machine without weights:

    p*_beta(v) = exp((1 - beta) a.v + beta b.v) prod_j (1 + exp(beta (c_j + v'W_j)))
    log w = sum_t log p*_t+1(v_t) - log p*_t(v_t),   v_t+1 ~ one sweep that keeps p_t+1
    log Z = log Z_0 + log mean w,   log Z_0 = sum_i softplus(a_i) + num_hidden log 2

The mean of w is unbiased for any temperatures, but its logarithm is too small on average, so the
log-likelihood is too large. The reverse run, from draws of the machine (:func:`reverse_ais`), has
the opposite bias.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ebm_dist.energies import EnergyFn
from ebm_dist.energies.rbm import Weights
from ebm_dist.rng import bernoulli, stream
from ebm_dist.samplers import STEPPED

_CHUNK = 1 << 14
_MOST = 25
"""Largest number of units that can be summed over."""


class Estimate(NamedTuple):
    """An estimate of log Z, in nats."""

    log_z: float
    low: float
    """log Z at the mean weight minus three standard errors; minus infinity, which is no lower
    bound, if that weight is not positive"""
    high: float
    """log Z at the mean weight plus three standard errors"""
    ess: float
    """Effective number of chains, (sum w)^2 / sum w^2. If it is small, do not trust the estimate or
    the interval"""

    def likelihoods(self, mean_energy: float) -> tuple[float, float]:
        """Return the low and the high end of the mean log-likelihood of data of a mean energy."""
        return -mean_energy - self.high, -mean_energy - self.low


@torch.no_grad()
def exact_log_z(weights: Weights) -> float:
    """Return log Z by summing over the states of the smaller layer, in float64.

    log Z = logsumexp_h [c.h + sum_i softplus(b_i + W_i h)]

    Raise :class:`ValueError` if that layer has more than 25 units.
    """
    weight, visible_bias, hidden_bias = (value.double() for value in weights)
    if weight.shape[0] < weight.shape[1]:
        weight, visible_bias, hidden_bias = weight.T, hidden_bias, visible_bias
    num_units = weight.shape[1]
    if num_units > _MOST:
        raise ValueError(f"2^{num_units} states are too many to sum over; use ais")
    total = torch.tensor(-math.inf, dtype=torch.float64, device=weight.device)
    for start in range(0, 1 << num_units, _CHUNK):
        index = torch.arange(start, min(start + _CHUNK, 1 << num_units), device=weight.device)
        h = (index[:, None] >> torch.arange(num_units, device=weight.device) & 1).double()
        terms = h @ hidden_bias + F.softplus(visible_bias + h @ weight.T).sum(1)
        total = torch.logaddexp(total, terms.logsumexp(0))
    return total.item()


def schedule(num_betas: int = 14_500) -> list[float]:
    """Return inverse temperatures from 0 to 1 (Salakhutdinov & Murray 2008).

    1/29 of them are below 0.5, 8/29 between 0.5 and 0.9, and 20/29 above; at least one is below
    0.5, which is 0. Raises ValueError for less than one.
    """
    if num_betas < 1:
        raise ValueError(f"AIS needs at least one step from 0 to 1, found {num_betas}")
    first = max(round(num_betas / 29), 1)
    second = min(round(num_betas * 8 / 29), num_betas - first)
    parts = (0.0, 0.5, first), (0.5, 0.9, second), (0.9, 1.0, num_betas - first - second)
    return [a + (b - a) * i / n for a, b, n in parts for i in range(n)] + [1.0]


def ais(
    weights: Weights, base: Tensor, betas: Sequence[float], num_chains: int, generator: Generator
) -> Estimate:
    """Estimate log Z from ``num_chains`` chains annealed from a base machine to this one.

    ``base (num_visible,)`` are the biases of the base machine, which has no weights. The logits of
    the data's mean are a good choice. ``betas`` grow from 0 to 1. Raises ValueError for others, or
    for fewer than two chains, which have no standard error.
    """
    check(betas, num_chains)
    v = bernoulli(base.sigmoid().expand(num_chains, -1), generator)
    log_w = _anneal(weights, base, betas, v, generator)
    return estimate(log_w, _log_z_of_base(weights, base))


def reverse_ais(
    weights: Weights, base: Tensor, betas: Sequence[float], v: Tensor, generator: Generator
) -> Estimate:
    """Estimate log Z from chains annealed from draws of the machine to ``base (num_visible,)``.

    The draws are ``v (num_chains, num_visible)``. For exact draws the estimate is too large on
    average. For draws of a long chain this requires that the chain has forgotten its start. Raises
    ValueError as :func:`ais`.
    """
    check(betas, len(v))
    log_w = _anneal(weights, base, betas[::-1], v, generator)
    return estimate(log_w, _log_z_of_base(weights, base), is_reverse=True)


def check(betas: Sequence[float], num_chains: int) -> None:
    """Raise ValueError for betas that do not grow from 0 to 1, or less than two chains."""
    if num_chains < 2:
        raise ValueError(f"AIS needs at least two chains for an interval, found {num_chains}")
    if len(betas) < 2 or (betas[0], betas[-1]) != (0, 1) or any(a >= b for a, b in pairwise(betas)):
        raise ValueError(f"inverse temperatures must grow from 0 to 1, found {list(betas)}")


def _log_z_of_base(weights: Weights, base: Tensor) -> float:
    return F.softplus(base.double()).sum().item() + len(weights.hidden_bias) * math.log(2)


@torch.no_grad()
def _anneal(
    weights: Weights, base: Tensor, betas: Sequence[float], v: Tensor, generator: Generator
) -> Tensor:
    """Return log w ``(num_chains,)`` in float64, from ``v``, which are draws at ``betas[0]``."""
    log_w = torch.zeros(len(v), dtype=torch.float64, device=v.device)
    for old, new in pairwise(betas):
        hidden = weights.hidden_input(v)
        # subtract unit by unit: the difference of the sums would be lost in their rounding
        log_w += (new - old) * (v @ (weights.visible_bias - base))
        log_w += (F.softplus(new * hidden) - F.softplus(old * hidden)).sum(1)
        h = bernoulli((new * hidden).sigmoid(), generator)
        v = bernoulli(((1 - new) * base + new * weights.visible_input(h)).sigmoid(), generator)
        STEPPED.get()()
    return log_w


def estimate(log_w: Tensor, log_z_0: float, *, is_reverse: bool = False) -> Estimate:
    """Return log Z of the log weights ``(num_chains,)`` and that of the base.

    The mean weight is Z / Z_0, and the other way round in the reverse run.
    """
    top = log_w.max()
    w = (log_w - top).exp()
    error = 3 * w.std() / len(w) ** 0.5
    low = (w.mean() - error).clamp(min=0).log()
    high = (w.mean() + error).log()
    ess = (w.sum() ** 2 / (w**2).sum()).item()
    log_mean, low_mean, high_mean = ((top + part).item() for part in (w.mean().log(), low, high))
    if is_reverse:
        return Estimate(log_z_0 - log_mean, log_z_0 - high_mean, log_z_0 - low_mean, ess)
    return Estimate(log_z_0 + log_mean, log_z_0 + low_mean, log_z_0 + high_mean, ess)


@torch.no_grad()
def pseudo_log_likelihood(
    energy: EnergyFn, v: Tensor, generator: Generator | None = None
) -> Tensor:
    """Return ``sum_i log p(v_i | all others) (B,)`` of binary ``v (B, *shape)`` (Besag 1975).

    With a generator, estimate it from one random unit of each row, times the number of units.
    Without, use all units, with one evaluation of the energy for each.
    """
    flat, energy_of_v = v.flatten(1), energy(v)
    num_units = flat.shape[1]

    def term(unit: Tensor) -> Tensor:
        flipped = flat.scatter(1, unit[:, None], 1 - flat.gather(1, unit[:, None]))
        return F.logsigmoid(energy(flipped.view_as(v)) - energy_of_v)

    if generator is not None:
        units = torch.randint(num_units, (len(v),), generator=generator, device=v.device)
        return num_units * term(units)
    return torch.stack(
        [term(torch.full((len(v),), i, device=v.device)) for i in range(num_units)]
    ).sum(0)


@torch.no_grad()
def reconstruction_error(weights: Weights, v: Tensor) -> float:
    """Return the mean square of ``v - p(v | p(h | v))``, for rows ``v (B, num_visible)``.

    It can decrease while the likelihood decreases, so do not select models by it.
    """
    return (
        ((v - weights.visible_input(weights.hidden_input(v).sigmoid()).sigmoid()) ** 2)
        .mean()
        .item()
    )


def binarised(x: Tensor, name: str) -> Tensor:
    """Draw ones and zeros by grey level ``(n, ...)``, always the same draw for a name."""
    return bernoulli(x, stream(0, f"likelihood/{name}"))


def independent_log_likelihood(v: Tensor, mean: Tensor) -> float:
    """Return the mean log-likelihood of binary rows ``(n, d)`` under independent units, in nats.

    It is that of a machine without weights, with the means ``(d,)``.
    """
    return float((v @ mean.log() + (1 - v) @ (1 - mean).log()).double().mean())
