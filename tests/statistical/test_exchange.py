"""Replica exchange over a path against enumeration, its ladder and its round trips."""

import itertools

import pytest
import torch

from ebm_dist.chains import exchange
from ebm_dist.energies import rbm
from ebm_dist.rng import stream
from ebm_dist.samplers import gibbs

GIBBS = gibbs.build(gibbs.Config(), bounds=None)
STATES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)))


class Machine:
    """Two modes, all zeros and all ones, that Gibbs sampling alone does not leave."""

    num_blocks = 1

    def __init__(self, share):
        weight = 12.0 * torch.ones(6, 2)
        self.weights = rbm.Weights(
            share * weight, -12.1 * share * torch.ones(6), -36.0 * share * torch.ones(2)
        )

    def __call__(self, x):
        return self.weights.free_energy(x)

    def resample(self, block, x, generator):
        return self.weights.sweep(x, generator)


def final_state(shares, num_chains, num_steps, start=0.0):
    kernel = exchange.exchange(GIBBS, [Machine(share) for share in shares[1:]])
    target, generator = Machine(shares[0]), stream(0, "exchange")
    state = kernel.init(target, torch.full((num_chains, 6), start))
    for _ in range(num_steps):
        state, info = kernel.step(target, state, generator)
    assert torch.equal(info.energy, target(state.position))
    return state


def distance(x, energy):
    """Total variation between draws and the enumerated distribution."""
    exact = torch.softmax(-energy(STATES).double(), dim=0)
    rows = (x.long() * 2 ** torch.arange(5, -1, -1)).sum(1)
    drawn = torch.bincount(rows, minlength=64).double() / len(x)
    return ((drawn - exact).abs().sum() / 2).item()


def test_every_replica_has_its_distribution():
    """From one mode; 4,000 draws are within the error of 64 shares, .06 at most."""
    shares = [1.0, 0.6, 0.3, 0.1, 0.0]
    state = final_state(shares, 4000, 80)
    assert distance(final_state([1.0], 4000, 80).position, Machine(1.0)) > 0.3
    for share, x in zip(shares, state.replicas, strict=True):
        assert distance(x, Machine(share)) < 0.06


def test_an_adapted_ladder_has_equal_refusal_rates():
    def run(ladder):
        return final_state(ladder, 500, 100).journey

    first = run([1.0, 0.9, 0.8, 0.7, 0.0])
    ladder, adapted = exchange.adapt_ladder(run, [1.0, 0.9, 0.8, 0.7, 0.0], 4)
    assert ladder[0] == 1.0 and ladder[-1] == 0.0 and ladder == sorted(ladder, reverse=True)
    before, after = (j.refusal_rates.max() - j.refusal_rates.min() for j in (first, adapted))
    assert before > 0.3 and after < 0.1


def test_round_trips_of_replicas_that_always_swap():
    """All energies equal: each of R copies needs 2 R steps, 1 / (2 + 2 Lambda) = 1/2 a step."""
    journey = final_state([0.0] * 5, 3, 400).journey
    assert journey.refusal_rates.tolist() == [0.0] * 4
    assert journey.round_trips.tolist() == pytest.approx([200] * 3, abs=5)


def test_equal_parts_of_the_barrier():
    assert exchange.equalised([1.0, 0.5, 0.0], [0.6, 0.2], 3) == pytest.approx([1.0, 2 / 3, 0.0])
