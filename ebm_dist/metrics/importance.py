"""Importance sampling: draws of one density, weighted to be of another (Kahn & Marshall 1953).

    w_i = exp(-E(x_i)) / q(x_i),   x_i ~ q
    Z ~ mean w_i,                  E_p[f] ~ sum w_i f(x_i) / sum w_i

All draws are used, unlike in rejection sampling, and no bound is needed. The mean weight is an
unbiased estimate of Z. How many draws count is the effective sample size, ``(sum w)^2 / sum w^2``
(Kong 1992).
"""

import math
from typing import NamedTuple

from torch import Tensor


class Importance(NamedTuple):
    """What log weights tell about a density and its draws."""

    log_z: float
    """log of the mean weight"""
    ess: float
    """Effective share of the draws, between ``1 / n`` and 1"""


def importance(log_w: Tensor) -> Importance:
    """Return the estimates of log weights ``(n,)``."""
    log_w, n = log_w.double(), len(log_w)
    total = log_w.logsumexp(0)
    ess = (2 * total - (2 * log_w).logsumexp(0)).exp()
    return Importance(float(total) - math.log(n), float(ess) / n)


def weighted_mean(log_w: Tensor, f: Tensor) -> Tensor:
    """Return ``E_p[f]`` ``(k,)`` from log weights ``(n,)`` and values ``f (n, k)``."""
    return log_w.double().softmax(0) @ f.double()
