#!/usr/bin/env bash
# CUQIpy 1.4.1: the logpdf of TruncatedNormal lacks the share that was cut off, so its mean is
# inferred as if nothing had been.
#
# 2,000 draws of TruncatedNormal(0, 1, low=0), by the library itself; m has a flat prior on (-5, 5).
# The posterior of m given the draws peaks at .78 with a deviation of .022, 35 deviations from the
# truth 0: at the mean of the draws. With the density of scipy's truncnorm it peaks at -.06.
# exp(logpdf) integrates to .625 for N(0, 4) on (-1, 3), .500 for N(0, 1) above 0; that of Normal,
# Beta, Gamma and Lognormal to 1. The docstring of logpdf says "unnormalized", the one of the class
# does not, and the missing factor depends on mean and std, which a joint distribution may leave
# free; the posterior is built without a word. Guess before the run: every 1-D density of the
# package integrates to 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  CUQIpy==1.4.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from cuqi.distribution import Beta, Gamma, JointDistribution, Lognormal, Normal, TruncatedNormal, Uniform
from scipy.stats import truncnorm

x = np.linspace(-20, 20, 16001)
kinds = {
    "N(0, 4) on (-1, 3)": TruncatedNormal(0, 2.0, low=-1, high=3),
    "N(0, 1) above 0": TruncatedNormal(0, 1.0, low=0),
    "Normal": Normal(0, 2.0),
    "Beta": Beta(2.0, 3.0),
    "Gamma": Gamma(3.0, 2.0),
    "Lognormal": Lognormal(np.zeros(1), 0.5),
}
mass = {}
for name, kind in kinds.items():
    log_density = [np.ravel(kind.logpdf(np.array([point])))[0] for point in x]
    mass[name] = round(float(np.nan_to_num(np.exp(log_density)).sum() * (x[1] - x[0])), 3)
print("integral of exp(logpdf):", mass)
assert abs(mass["N(0, 4) on (-1, 3)"] - 0.625) < 0.002 and abs(mass["N(0, 1) above 0"] - 0.5) < 0.002
assert all(abs(mass[name] - 1) < 0.002 for name in ("Normal", "Beta", "Gamma", "Lognormal"))

np.random.seed(0)
n = 2000
drawn = TruncatedNormal(0, 1.0, low=0).sample(n).samples.ravel()
m = Uniform(-5, 5, name="m")
rows = TruncatedNormal(lambda m: m * np.ones(n), np.ones(n), low=np.zeros(n), name="rows", geometry=n)
posterior = JointDistribution(m, rows)(rows=drawn)
grid = np.linspace(-1, 1.5, 1251)
cuqi = np.array([np.ravel(posterior.logd(m=np.array([value])))[0] for value in grid])
scipy = np.array([truncnorm.logpdf(drawn, -value, np.inf, loc=value).sum() for value in grid])
weights = np.exp(cuqi - cuqi.max())
deviation = float(np.sqrt(np.cov(grid, aweights=weights)))
peaks = float(grid[cuqi.argmax()]), float(grid[scipy.argmax()])
print(f"mean of the draws {drawn.mean():.3f}; posterior of m peaks at {peaks[0]:.3f}", end=" ")
print(f"(deviation {deviation:.3f}), with scipy's density at {peaks[1]:.3f}; the truth is 0")
assert abs(peaks[0] - drawn.mean()) < 0.003 and peaks[0] > 0.75 and abs(peaks[1]) < 0.15
assert abs(deviation - 0.022) < 0.002

PYTHON
