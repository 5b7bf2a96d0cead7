"""Conditionals of a network against integrals, and what a hidden value may be seen by."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ebm_dist import config
from ebm_dist.energies import conditionals
from ebm_dist.errors import ConfigError
from ebm_dist.objectives import Batch, StepContext, masked_likelihood
from ebm_dist.rng import stream
from tests import helpers


def network(size, **changes):
    torch.manual_seed(0)
    chosen = conditionals.Config(**{"hidden": (16,)} | changes)
    made = conditionals.build(chosen, shape=(size,), num_classes=0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.double()


def test_a_conditional_integrates_to_one_and_does_not_see_its_value():
    made, side = network(3), torch.linspace(-80, 80, 8001, dtype=torch.float64)
    x = torch.randn(3, generator=stream(0, "x"), dtype=torch.float64).expand(len(side), 3).clone()
    x[:, 1] = side
    hidden = torch.tensor([[False, True, True]]).expand(len(side), 3)
    with torch.no_grad():
        nll = made.nll(x, hidden)
    assert (-nll[:, 1]).exp().sum().item() * 160 / 8000 == pytest.approx(1, abs=1e-3)
    assert torch.equal(nll[:, 2], nll[:1, 2].expand(len(side)))  # nor do others that see it hidden
    x[:, 0] = side
    assert made.nll(x, hidden)[:, 2].std() > 0.01


def test_an_energy_is_the_sum_over_values_each_given_the_others():
    made, x = network(4), torch.randn(5, 4, generator=stream(0, "x"), dtype=torch.float64)
    total = torch.zeros(5, dtype=torch.float64)
    for j in range(4):
        total += made.nll(x, torch.eye(4, dtype=torch.bool)[j].expand(5, 4))[:, j]
    torch.testing.assert_close(made(x), total)


def test_long_samples_hide_each_value_equally_often():
    made = network(23, max_passes=6)
    assert made.passes.shape == (6, 23) and set(made.passes.sum(dim=0).tolist()) == {2}
    x = torch.randn(5, 23, generator=stream(0, "x"), dtype=torch.float64)
    total = sum(
        torch.where(hidden, made.nll(x, hidden.expand_as(x)), 0).sum(dim=1)
        for hidden in made.passes
    )
    torch.testing.assert_close(made(x), total / 2)


class Seen(torch.nn.Module):
    """An energy that keeps what it sees."""

    def forward(self, x, y, is_hidden):
        self.x, self.is_hidden = x, is_hidden
        return torch.zeros(len(x), requires_grad=True)


def test_each_sample_hides_its_own_share():
    energy, x = Seen(), torch.zeros(4000, 50)
    objective = masked_likelihood.MaskedLikelihood(masked_likelihood.Config(), energy)
    context = StepContext(0, None, {"energy": energy}, lambda purpose: stream(0, purpose))
    next(objective.turns(Batch(x, torch.zeros(4000, dtype=torch.long)), context))
    shares = energy.is_hidden.double().mean(dim=1)
    assert 0.0 <= shares.min() < 0.12 and 0.88 < shares.max() <= 1.0
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.std().item() == pytest.approx(np.sqrt(0.8**2 / 12 + 0.5 * 0.5 / 50), abs=0.02)
    assert energy.x.std().item() == pytest.approx(0.05, rel=0.02)


def test_the_conditionals_of_correlated_columns_are_learnt(tmp_path):
    """-log p(x_j | x_-j) of a Gaussian: its variance given the others is 1 - rho^2."""
    rho, made = 0.9, network(2, hidden=(32,)).float()
    z = torch.randn(20_000, 2, generator=stream(0, "z"))
    x = torch.stack([z[:, 0], rho * z[:, 0] + (1 - rho**2) ** 0.5 * z[:, 1]], dim=1)
    objective = masked_likelihood.MaskedLikelihood(masked_likelihood.Config(data_noise=0.0), made)
    optimizer = torch.optim.Adam(made.parameters(), 5e-3)
    for step in range(400):
        rows = torch.randint(len(x), (256,), generator=stream(0, "rows", step))
        context = StepContext(step, None, {"energy": made}, lambda p, step=step: stream(0, p, step))
        (turn,) = objective.turns(Batch(x[rows], torch.zeros(256, dtype=torch.long)), context)
        optimizer.zero_grad()
        turn.loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = made(x).mean().item()
    exact = 2 * 0.5 * np.log(2 * np.pi * np.e * (1 - rho**2))
    assert exact - 0.02 < found < exact + 0.15


def test_other_energies_have_no_conditionals():
    with pytest.raises(ConfigError, match="has no conditionals to learn; use conditionals"):
        config.from_values(helpers.values(objective={"name": "masked_likelihood"}), Path("test"))
