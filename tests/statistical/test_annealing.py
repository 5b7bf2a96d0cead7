"""Annealed importance sampling of binary energies against enumeration, from both ends."""

import pytest
import torch

from ebm_dist.metrics import annealing
from ebm_dist.metrics.ais import schedule
from ebm_dist.rng import stream
from ebm_dist.samplers import dmala, gibbs_with_gradients, run_chain
from tests.statistical.targets import Ising

NUM_CHAINS = 1000
STATES = (torch.arange(1 << 16)[:, None] // 2 ** torch.arange(16) % 2).float().view(-1, 1, 4, 4)
BASE = torch.randn(1, 4, 4, generator=stream(0, "base")) / 2
KERNELS = {
    "gibbs_with_gradients": gibbs_with_gradients.build(gibbs_with_gradients.Config(), bounds=None),
    "dmala": dmala.build(dmala.Config(step_size=0.3), bounds=None),
}

KERNELS["dmala and single changes"] = annealing.with_single_changes(KERNELS["dmala"])


class Lattice:
    """Ising 4x4 with a field, of images ``(B, 1, 4, 4)``."""

    def __init__(self):
        self.ising, self.field = Ising(), torch.randn(4, 4, generator=stream(1, "field")) / 2

    def __call__(self, x):
        return self.ising(x[:, 0]) + (x[:, 0] * self.field).sum((1, 2)) + 3.0


TARGET = Lattice()
LOG_Z = (-TARGET(STATES).double()).logsumexp(0).item()


@pytest.mark.parametrize("name", KERNELS)
def test_both_runs_give_the_exact_log_z(name):
    """Within four standard errors, of which one is under .08."""
    betas = schedule(250)
    ahead = annealing.forward(TARGET, KERNELS[name], BASE, betas, NUM_CHAINS, stream(0, "forward"))
    rows = torch.multinomial(
        (-TARGET(STATES) - LOG_Z).exp(), NUM_CHAINS, replacement=True, generator=stream(0, "draws")
    )
    back = annealing.reverse(TARGET, KERNELS[name], BASE, betas, STATES[rows], stream(0, "reverse"))
    for estimate in (ahead, back):
        error = (estimate.high - estimate.low) / 6
        assert error < 0.08 and estimate.low < estimate.log_z < estimate.high
        assert abs(estimate.log_z - LOG_Z) < 4 * error


def test_chains_that_are_refused_for_ever_get_out_by_single_changes():
    """Every bit wants to change, and all together change nothing: of 16 bits 8 are wanted."""

    def energy(x):
        return 5 * (x.flatten(1).sum(1) - 8) ** 2

    start = torch.ones(20, 1, 4, 4)
    ends = [
        run_chain(KERNELS[name], energy, start, 50, stream(0, "stuck"))[0].flatten(1).sum(1)
        for name in ("dmala", "dmala and single changes")
    ]
    assert set(ends[0].tolist()) <= {0.0, 16.0}
    assert (ends[1] - 8).abs().max() <= 1


def test_an_energy_that_is_the_base_has_its_log_z():
    energy = annealing.Between(TARGET, BASE, 0.0)
    found = annealing.forward(energy, KERNELS["dmala"], BASE, [0.0, 0.4, 1.0], 3, stream(0, "same"))
    expected = torch.nn.functional.softplus(BASE).sum().item()
    assert found.log_z == pytest.approx(expected, abs=1e-4) and found.ess == pytest.approx(3)


def test_refusals():
    for betas, count in (([0.0, 1.0], 1), ([0.0, 0.5], 2), ([1.0, 0.0], 2)):
        with pytest.raises(ValueError, match=r"AIS needs|must grow"):
            annealing.forward(TARGET, KERNELS["dmala"], BASE, betas, count, stream(0, "bad"))
