#!/usr/bin/env bash
# dwave-samplers 1.8.0: 1,000 sweeps of simulated annealing at a finite temperature return the start.
#
# Two spins without field or coupling, beta = 1 throughout, 500 reads from the start (+1, +1). All
# reads end at (+1, +1) after 1,000 sweeps, and all at (-1, -1) after 1,001: by default the sweep is in
# a fixed order with Metropolis's rule, which accepts every proposal that costs nothing, so a free spin
# flips in every sweep and nothing is random. In random order (randomize_order=True) the two spins of a
# read are still always equal. With proposal_acceptance_criteria="Gibbs" they are independent and
# uniform. Guess before the run: four states, a quarter each. So free and weakly bound variables of an
# energy keep the parity of the start, and averages over reads are wrong by up to 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check dwave-samplers==1.8.0 dimod==0.12.23 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from dwave.samplers import SimulatedAnnealingSampler


def ends(num_sweeps, **more):
    found = SimulatedAnnealingSampler().sample_ising(
        {"a": 0.0, "b": 0.0},
        {},
        num_reads=500,
        num_sweeps=num_sweeps,
        beta_range=[1.0, 1.0],
        seed=3,
        initial_states={"a": 1, "b": 1},
        initial_states_generator="tile",
        **more,
    )
    return np.unique(found.record.sample, axis=0).tolist()


even, odd = ends(1000), ends(1001)
shuffled = ends(1000, randomize_order=True)
gibbs = ends(1000, proposal_acceptance_criteria="Gibbs")
print("after 1,000 sweeps:", even, " after 1,001:", odd)
print("in random order:", shuffled, " by Gibbs's rule:", gibbs)
assert even == [[1, 1]] and odd == [[-1, -1]]
assert shuffled == [[-1, -1], [1, 1]]
assert len(gibbs) == 4

PYTHON
