#!/usr/bin/env bash
# CUQIpy 1.4.1: priors with periodic boundary know where the ring begins.
#
# A ring of 50 pixels, bc_type="periodic", one pixel raised by 1. Under LMRF and CMRF (Laplace and
# Cauchy differences) it costs one nat, and ln 2, more at pixel 0 or 49 than at the other 48; a ring
# has no such place. The matrix of differences has 51 rows for 50 links: the one from the last pixel
# to the first is there twice. The precision of GMRF is made of the same rows (it warns at least
# that this boundary is "experimental"), and its draws come from a third distribution: the mean of
# their quadratic form x'Px is about 75, where it is the rank, 49, and the lowest mode of the ring
# has half its variance, the middle one 1.8 times: sorted eigenvalues meet the modes of a Fourier
# transform, which come in another order. One expects: densities that do not change when x is
# rolled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  CUQIpy==1.4.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from cuqi.distribution import CMRF, GMRF, LMRF
from cuqi.operator import FirstOrderFiniteDifference

n = 50
ring = {"bc_type": "periodic", "geometry": n}
rows = FirstOrderFiniteDifference(n, bc_type="periodic").get_matrix().toarray()
print("rows of the differences:", rows.shape, " first is last:", (rows[0] == rows[-1]).all())
assert rows.shape == (n + 1, n) and (rows[0] == rows[-1]).all()

for kind, wanted in ((LMRF, 1.0), (CMRF, np.log(2))):
    prior = kind(np.zeros(n), 1.0, **ring)
    at = np.array([prior.logpdf(pixel).item() for pixel in np.eye(n)])
    lost = at[n // 2] - at
    print(f"{kind.__name__}: nats lost at pixel 0, 1, 2 .. 49:", lost[[0, 1, 2, -1]].round(3))
    assert np.allclose(lost[[0, -1]], wanted) and np.allclose(lost[1:-1], 0)

np.random.seed(0)
prior = GMRF(np.zeros(n), 1.0, **ring)
draws = prior.sample(4000).samples
form = ((rows @ draws) ** 2).sum(axis=0).mean()
exact = 2 - 2 * np.cos(2 * np.pi * np.arange(n) / n)  # eigenvalues of the ring, by mode
modes = (np.abs(np.fft.fft(draws, axis=0)) ** 2).mean(axis=1) / n * exact
print(f"GMRF: mean of x'Px {form:.1f}, rank {np.linalg.matrix_rank(rows)};", end=" ")
print("variance of modes 1, 2, 25 over exact:", modes[[1, 2, 25]].round(2))
assert abs(form - 75) < 2 and np.linalg.matrix_rank(rows) == n - 1
assert modes[1] < 0.6 and modes[25] > 1.6

PYTHON
