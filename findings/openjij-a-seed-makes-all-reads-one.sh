#!/usr/bin/env bash
# openjij 0.12.2: with a seed, 300 reads are 300 copies of one read.
#
# A glass of 60 spins, 300 reads of 10 sweeps. Without a seed SASampler finds 200 and more different
# states, the best of them at about -323; with a seed all 300 are the same state, at -272 for seed
# 1. The seed is set anew for each read, so "the best of 300 reads" is one read, and 300 times its
# cost is paid. SQASampler does the same. As draws at beta = 1 the mean spin of three coupled spins
# is -1 or 1 with a standard error of 0, where it is -.44. CSQASampler and sample_hubo, with the
# same argument, give different reads. Guess before the run: reads at a constant beta follow the
# distribution of Boltzmann. The result holds num_occurrences of 1 each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  openjij==0.12.2 dwave-samplers==1.8.0 dimod==0.12.23 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from dwave.samplers import SimulatedAnnealingSampler
from openjij import CSQASampler, SASampler, SQASampler

draw = np.random.default_rng(0).normal
couplings = {(i, j): float(draw()) for i in range(60) for j in range(i)}


def reads(sampler, seed):
    found = sampler.sample_ising({}, couplings, num_reads=300, num_sweeps=10, seed=seed).record
    assert (found.num_occurrences == 1).all()
    return len(np.unique(found.sample, axis=0)), round(float(found.energy.min()), 1)


free = reads(SASampler(), None)
seeded = [reads(SASampler(), seed) for seed in (0, 1, 2)]
others = {type(s).__name__: reads(s, 1)[0] for s in (SQASampler(), CSQASampler(), SimulatedAnnealingSampler())}
print("different states and least energy of 300 reads: no seed", free, " seeds 0, 1, 2:", seeded)
print("different states with seed 1:", others)
assert free[0] > 150 and free[1] < -315
assert [states for states, _ in seeded] == [1, 1, 1]
assert seeded[1][1] > -280
assert others["SQASampler"] == 1 and min(others["CSQASampler"], others["SimulatedAnnealingSampler"]) > 150

fields, links = {0: 0.3, 1: -0.4, 2: 0.1}, {(0, 1): 0.5, (1, 2): -0.7, (0, 2): 0.2}
states = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
energy = sum(f * states[:, i] for i, f in fields.items())
energy = energy + sum(c * states[:, i] * states[:, j] for (i, j), c in links.items())
exact = float(np.average(states[:, 0], weights=np.exp(-energy)))
means = {}
for seed in (None, 0, 1):
    more = {"num_reads": 4000, "num_sweeps": 200, "beta_min": 1.0, "beta_max": 1.0, "seed": seed}
    found = SASampler().sample_ising(fields, links, **more)
    means[seed] = float(found.record.sample[:, list(found.variables).index(0)].mean())
print(f"mean of the first spin at beta = 1: exact {exact:.3f}; by seed {means}")
assert abs(means[None] - exact) < 0.08
assert abs(means[0]) == abs(means[1]) == 1

PYTHON
