#!/usr/bin/env bash
# peapods 0.2.0: overlap_cluster_build_mode="cmr" samples too high energies.
#
# A 4 x 4 glass of couplings 1 and -1, two replicas, 75,000 kept sweeps with an overlap move in
# each. The bond energy per spin, which is its negative energy, at T = .8, 1.8 and 3.5 is 1.354,
# 1.051 and .583, by enumeration of the 65,536 states. The Houdayer and Joerg moves and Metropolis
# alone have it to .004. "cmr" has 1.27, .92 and .51: 6, 12 and 12 % less; for the ferromagnet at T
# = 2.4 it is 1.33 in place of 1.46. That is with overlap_cluster_mode="wolff", the default; with
# "sw" the CMR move is right too. The docstring warns of "houdN" for N above 2, not of this one.
# Probable cause: which bonds close the second, larger cluster; the sources after 0.2.0 have a test
# for that, but 0.2.0 is what pip installs. Guess before the run: all moves leave the distribution
# of Boltzmann as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peapods==0.2.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

from itertools import product

import numpy as np
from peapods import Ising

temperatures = np.array([0.8, 1.8, 2.4, 3.5])
spins = np.array(list(product([-1, 1], repeat=16)), dtype=np.int8).reshape(-1, 4, 4)
glass = np.random.default_rng(1).choice([-1.0, 1.0], size=(4, 4, 2)).astype(np.float32)
magnet = np.ones_like(glass)


def enumerated(couplings):
    down, right = spins * np.roll(spins, -1, axis=1), spins * np.roll(spins, -1, axis=2)
    bonds = (couplings[..., 0] * down + couplings[..., 1] * right).sum(axis=(1, 2))
    weights = np.exp((bonds - bonds.max())[:, None] / temperatures)
    return bonds @ weights / weights.sum(axis=0) / 16


def sampled(couplings, build, mode):
    model = Ising((4, 4), couplings=couplings, temperatures=temperatures, n_replicas=2)
    move = {"overlap_cluster_build_mode": build, "overlap_cluster_mode": mode}
    extra = {"overlap_cluster_update_interval": 1, **move} if build else {}
    model.sample(100_000, sequential=True, **extra)
    return model.energies_avg


for name, couplings in (("glass", glass), ("ferromagnet", magnet)):
    exact = enumerated(couplings)
    print(f"{name}, T = {temperatures}: exact {exact.round(3)}")
    for build, mode in (
        (None, None), ("houdayer", "wolff"), ("jorg", "wolff"), ("cmr", "sw"), ("cmr", "wolff")
    ):
        found = sampled(couplings, build, mode)
        print(f"  {build} {mode}: {found.round(3)}, error {(found - exact).round(3)}")
        if (build, mode) == ("cmr", "wolff"):
            assert (found - exact)[2:].max() < -0.05
            assert name == "ferromagnet" or (found - exact).max() < -0.05
        else:
            assert np.abs(found - exact).max() < 0.012

PYTHON
