"""Chains over a ladder of noise levels: exact where the levels are, whatever separates the modes; and their training."""

from pathlib import Path

import pytest
import torch

from ebm_dist import config, evaluation, models
from ebm_dist.chains.ladder import conditional, ladder, steps_of
from ebm_dist.chains.replay import ReplayShard
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.energies import Levels
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import samples
from ebm_dist.objectives import Batch, StepContext, recovery_likelihood
from ebm_dist.rng import stream
from ebm_dist.samplers import ancestral, langevin, mala, run_chain
from tests import helpers
from tests.helpers import Silent, spawn, state_of
from tests.statistical.targets import assert_counts, assert_moments
from tests.statistical.test_chain_free import Variances

SIGMAS = (0.0, 0.3, 0.6, 1.2, 2.5, 5.0)


class Mixture:
    """Two unequal modes, 8 apart, under noise of each level: exact energies."""

    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0]])
    shares = torch.tensor([0.3, 0.7])
    sigmas = torch.tensor(SIGMAS)

    def __call__(self, x, y=None):
        y = torch.zeros(len(x), dtype=torch.long) if y is None else y
        variance = (0.25 + self.sigmas[y] ** 2)[:, None]
        squares = ((x[:, None] - self.centres) ** 2).sum(2)
        return -(self.shares.log() - squares / 2 / variance - variance.log()).logsumexp(1)


def test_widths_add_up_to_the_noise():
    assert sum(s**2 for s in steps_of(SIGMAS)) == pytest.approx(SIGMAS[-1] ** 2)


def test_a_step_forgets_its_mode():
    """All chains start in the smaller mode; after some steps both have their shares and variances."""
    inner = mala.build(mala.Config(step_size=0.3), bounds=None)
    kernel = ladder(inner, SIGMAS, 60, bounds=None)
    start = Mixture.centres[:1].expand(4000, 2)
    x, stats = run_chain(kernel, Mixture(), start, 1, stream(1, "chain"))
    mode = (x[:, 0] > 0).long()
    assert 0.3 < mode.float().mean() < 0.5  # a third of the chains crosses a barrier of 64 nats
    x, stats = run_chain(kernel, Mixture(), start, 10, stream(2, "chain"))
    mode = (x[:, 0] > 0).long()
    assert_counts(mode, Mixture.shares)
    for k in (0, 1):
        assert_moments(x[mode == k], Mixture.centres[k], torch.full((2,), 0.25))
    torch.testing.assert_close(stats.energy, Mixture()(x).mean())


class Fine(Mixture):
    """The mixture at many levels, up to far above its size."""

    sigmas = torch.logspace(-2, 1.7, 90)


def test_more_than_all_noise_cannot_be_replaced():
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ancestral.Config(correction=1.5)


@pytest.mark.parametrize("correction", [0.0, 0.05])
def test_ancestral_steps_draw_from_the_data(correction):
    """From the smaller mode, one step has the shares, centres and variances of the data."""
    kernel = ancestral.build(ancestral.Config(correction=correction), bounds=None)
    start = Fine.centres[:1].expand(4000, 2)
    x, stats = run_chain(kernel, Fine(), start, 1, stream(1, "ancestral"))
    mode = (x[:, 0] > 0).long()
    assert_counts(mode, Fine.shares)
    for k in (0, 1):
        assert_moments(x[mode == k], Fine.centres[k], torch.full((2,), 0.25))
    torch.testing.assert_close(stats.energy, Fine()(x).mean())


class Counting(Fine):
    def __init__(self):
        self.num_calls = 0

    def __call__(self, x, y=None):
        self.num_calls += 1
        return super().__call__(x, y)


@pytest.mark.parametrize(("lowest", "expected"), [(0.0, 89), (Fine.sigmas[30].item(), 59)])
def test_corrections_end_at_their_lowest_level(lowest, expected):
    """Beside the 90 scores and the energy at the end."""
    config = ancestral.Config(correction=0.01, corrected_from=lowest)
    target = Counting()
    run_chain(
        ancestral.build(config, bounds=None), target, torch.zeros(3, 2), 1, stream(0, "calls")
    )
    assert target.num_calls - 91 == expected


def test_ancestral_steps_need_levels():
    kernel = ancestral.build(ancestral.Config(), bounds=None)
    with pytest.raises(TypeError, match="needs an energy of noise levels"):
        kernel.init(lambda x: x.sum(1), torch.zeros(2, 2))


def test_exact_draws_stay_exact():
    inner = mala.build(mala.Config(step_size=0.3), bounds=None)
    kernel = ladder(inner, SIGMAS, 40, bounds=None)
    generator = stream(3, "exact")
    mode = (torch.rand(6000, generator=generator) < 0.7).long()
    start = Mixture.centres[mode] + 0.5 * torch.randn(6000, 2, generator=generator)
    x, _ = run_chain(kernel, Mixture(), start, 1, stream(4, "chain"))
    assert_counts((x[:, 0] > 0).long(), Mixture.shares)
    for k in (0, 1):
        part = x[(x[:, 0] > 0).long() == k]
        assert_moments(part, Mixture.centres[k], torch.full((2,), 0.25))


def test_ends_lie_within_bounds():
    inner = langevin.build(langevin.Config(step_size=0.1, noise_scale=0.4), bounds=None)
    kernel = ladder(inner, SIGMAS, 3, bounds=(-1.0, 1.0))
    x, _ = run_chain(kernel, Mixture(), torch.zeros(50, 2), 2, stream(0, "chain"))
    assert x.abs().max() == 1


def turn_of(objective, energy, x):
    replay = ReplayShard(4, x.shape[1:], None, range(1), stream(0, "chains"))
    context = StepContext(1, replay, {"energy": energy}, lambda purpose: stream(0, purpose))
    (turn,) = objective.turns(Batch(x, torch.zeros(len(x), dtype=torch.long)), context)
    return turn


LADDER = (0.0, 0.5, 1.0, 2.0)


def recovery(num_steps, step_size=0.2, **rest):
    energy = Levels(Variances(3), LADDER[:-1])
    kernel = mala.build(mala.Config(step_size=step_size), bounds=None)
    chosen = recovery_likelihood.Config(sigmas=LADDER, **rest)
    return recovery_likelihood.RecoveryLikelihood(chosen, energy, kernel, num_steps), energy


def test_the_loss_is_that_of_the_conditionals():
    objective, energy = recovery(7, energy_penalty=0.3)
    with torch.no_grad():
        energy.network.log_v.copy_(torch.tensor([0.1, 0.5, 1.0]))
    x = torch.randn(12, 2, generator=stream(0, "x")).double()
    turn = turn_of(objective, energy, x)
    generator = stream(0, "noise")
    z, z_above = (torch.randn(12, 2, generator=generator) for _ in range(2))
    level = (torch.randint(3, (1,), generator=stream(0, "levels")) + torch.arange(12)) % 3
    s = torch.tensor(steps_of(LADDER))[level][:, None]
    positive = x + torch.tensor(LADDER)[level][:, None] * z
    above = positive + s * z_above
    v = energy.network.log_v.exp()[level].detach()
    target = lambda u: (
        ((s * u) ** 2).sum(1) / 2 / v + ((above - s * u) ** 2).sum(1) / 2 / s[:, 0] ** 2
    )
    u, _ = run_chain(objective.kernel, target, above / s, 7, stream(0, "chain"))
    assert (u != above / s).any()
    pos, neg = energy(positive, level), energy(s * u, level)
    expected = pos.mean() - neg.mean() + 0.3 * ((pos**2).mean() + (neg**2).mean())
    assert turn.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(turn.loss, energy.network.log_v)
    (by_hand,) = torch.autograd.grad(expected, energy.network.log_v)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-6)
    assert conditional(energy, level, above, s)(u).shape == (12,)


@pytest.mark.slow
def test_the_variances_of_all_levels_are_learnt():
    objective, energy = recovery(25, step_size=0.4)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    learnt = []
    for step in range(160):
        x = 1.2 * torch.randn(3000, 2, generator=stream(0, "data", step=step)).double()
        optimizer.zero_grad()
        turn_of(objective, energy, x).loss.backward()
        optimizer.step()
        learnt.append(energy.network.log_v.detach().exp().clone())
    expected = 1.44 + torch.tensor(LADDER[:-1]).double() ** 2
    torch.testing.assert_close(torch.stack(learnt[80:]).mean(0), expected, rtol=0.1, atol=0)


TOY = {
    "dataset": {"name": "toy2d", "density": "8gaussians", "scale": 2.0, "sd": 0.354, "num_train": 512, "num_test": 300},
    "energy": {"name": "mlp", "hidden": [16, 16], "confinement": 0.2},
    "sampler": {"name": "langevin", "step_size": 0.1, "noise_scale": 0.44, "num_steps": 4},
    "objective": {"name": "recovery_likelihood", "sigmas": [0.0, 0.3, 1.0, 3.0]},
    "train": {"num_shards": 2},
    "evaluation": {"samples": {"num_samples": 50, "num_steps": 2}},
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    dataset = helpers.params(**TOY).dataset
    shards.write(folder, "test", module_of(dataset).load(dataset))
    return folder


@pytest.mark.slow
def test_training_has_the_same_bits_on_two_workers_and_its_model_is_sampled(toy, tmp_path):
    chosen = helpers.params(**TOY)
    helpers.build(chosen, toy).fit(tmp_path / "one", Silent())
    spawn(2, tmp_path / "two", toy, helpers.values(**TOY))
    assert state_of(tmp_path / "one") == state_of(tmp_path / "two")
    helpers.export(tmp_path / "one", tmp_path / "model", chosen, toy)
    model = models.load(tmp_path / "model")
    subject = evaluation.Subject(model, shards.read_index(toy), {}, None)
    x, _, trace, _ = samples.sample(chosen.evaluation["samples"], subject)
    assert x.shape == (50, 2) and x.isfinite().all() and trace


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": TOY["objective"] | {"sigmas": [1.0]}}, "needs two or more levels"),
        ({"objective": TOY["objective"] | {"sigmas": [0.0, 2.0, 1.0]}}, "in growing order"),
        ({"train": {"compile": True}}, "chains of this objective are not compiled"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        config.from_values(helpers.values(**(TOY | changes)), Path("test"))
