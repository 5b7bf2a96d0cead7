"""Objectives without chains against closed forms, a known noise against integrals, and early stopping."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from ebm_dist import config, models
from ebm_dist.chains.replay import ReplayShard
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.energies import EnergyModel, Levels, autoencoder, averages_of, build_energy, mlp
from ebm_dist.errors import ConfigError
from ebm_dist.generators import gaussian, histogram
from ebm_dist.objectives import (
    Batch,
    StepContext,
    energy_discrepancy,
    energy_matching,
    level_classification,
    score_matching,
)
from ebm_dist.rng import stream
from ebm_dist.training import checkpoint, selection, state
from tests import helpers
from tests.helpers import Silent, spawn, state_of

TOY = {
    "dataset": {"name": "toy2d", "density": "8gaussians", "scale": 2.0, "sd": 0.354, "num_train": 512, "num_test": 300},
    "energy": {"name": "mlp", "hidden": [16, 16], "confinement": 1.0},
    "sampler": {"name": "mala"},
}  # fmt: skip
OBJECTIVES = {
    "denoising": {"name": "score_matching", "sigmas": [0.1, 0.3]},
    "sliced": {"name": "score_matching", "criterion": "sliced", "num_slices": 2},
    "exact": {"name": "score_matching", "criterion": "exact"},
    "discrepancy": {"name": "energy_discrepancy"},
    "matching": {"name": "energy_matching", "warm_up": 0.5, "num_langevin": 3},
    "histogram": {
        "name": "noise_contrastive",
        "generator": {"name": "histogram", "num_cells": 16},
        "pretraining": 0,
    },
    "based": {
        "name": "score_matching",
        "noise_levels": True,
        "sigmas": [0.1, 0.4, 1.0],
        "data_sd": 1.0,
        "base": {"name": "mixture", "num_components": 4},
        "base_from": 0.2,
    },
    "levels": {
        "name": "level_classification",
        "generator": {"name": "histogram", "num_cells": 16},
        "sigmas": [0.0, 0.2, 0.6],
    },
}


def settings(kind, **changes):
    return helpers.values(
        **{name: section | changes.pop(name, {}) for name, section in TOY.items()},
        objective=OBJECTIVES[kind] | changes.pop("objective", {}),
        **changes,
    )


def params(kind, **changes):
    return config.from_values(settings(kind, **changes), Path("test"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    dataset = params("exact").dataset
    shards.write(folder, "test", module_of(dataset).load(dataset))
    return folder


class Quadratic(EnergyModel):
    """``(x - m)^T P (x - m) / 2``, and more of it for labels."""

    def __init__(self, precision):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64))
        self.precision = nn.Parameter(torch.tensor(precision, dtype=torch.float64))

    def forward(self, x, y=None):
        d = x.flatten(1) - self.mean
        energy = ((d @ self.precision) * d).sum(1) / 2
        return energy if y is None else energy * (1 + y)


P = [[2.0, 0.3, -0.2], [0.3, 1.0, 0.4], [-0.2, 0.4, 1.5]]


def loss_of(objective, energy, x, y=None, step=0):
    labels = torch.zeros(len(x), dtype=torch.long) if y is None else y
    replay = ReplayShard(4, x.shape[1:], None, range(1), stream(0, "chains"))
    context = StepContext(step, replay, {"energy": energy}, lambda purpose: stream(0, purpose))
    (turn,) = objective.turns(Batch(x, labels), context)
    return turn


def data(n=50):
    x = torch.randn(n, 3, generator=stream(0, "x"), dtype=torch.float64)
    return x * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64) + 1


@pytest.mark.parametrize("conditional", [False, True])
def test_exact_and_sliced_score_matching_of_a_quadratic(conditional):
    """-tr P + |P (x - m)|^2 / 2; a slice has v^T P v in place of the trace."""
    energy, x = Quadratic(P), data()
    y = torch.arange(len(x)) % 2
    factor = (1 + y if conditional else torch.ones(len(x)))[:, None].double()
    s = -factor * ((x - energy.mean) @ energy.precision)
    half = (s**2).sum(1).mean() / 2
    objective = score_matching.ScoreMatching(
        score_matching.Config(criterion="exact", conditional=conditional), energy
    )
    turn = loss_of(objective, energy, x, y)
    trace = (factor * energy.precision.trace()).mean()
    assert turn.loss.item() == pytest.approx((half - trace).item(), rel=1e-10)
    assert turn.metrics["score_norm"].item() == pytest.approx(s.norm(dim=1).mean().item())
    assert turn.energies["energy_pos"].item() == pytest.approx(
        (energy(x, y) if conditional else energy(x)).mean().item()
    )

    sliced = score_matching.Config(criterion="sliced", num_slices=3, conditional=conditional)
    turn = loss_of(score_matching.ScoreMatching(sliced, energy), energy, x, y)
    generator, curvature = stream(0, "slices"), 0.0
    for _ in range(3):
        v = torch.randn(x.shape, generator=generator)
        v = v.double()
        curvature += (factor[:, 0] * ((v @ energy.precision) * v).sum(1)).mean() / 3
    assert turn.loss.item() == pytest.approx((half - curvature).item(), rel=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_denoising_score_matching_of_a_quadratic(relative):
    """mean |z - sigma P (x + sigma z - m)|^2 / 2, with the level of each sample in turn."""
    energy, x = Quadratic(P), data()
    chosen = score_matching.Config(sigmas=(0.5, 2.0), relative=relative)
    turn = loss_of(score_matching.ScoreMatching(chosen, energy), energy, x)
    z = torch.randn(x.shape, generator=stream(0, "noise")).double()
    sigma = torch.tensor([0.5, 2.0]).double().repeat(len(x) // 2)[:, None]
    if relative:
        sigma = sigma * x.std(dim=0, correction=0)
    residual = z - sigma * ((x + sigma * z - energy.mean) @ energy.precision)
    assert turn.loss.item() == pytest.approx((residual**2).sum(1).mean().item() / 2, rel=1e-6)


@pytest.mark.parametrize("criterion", ["denoising", "sliced", "exact"])
def test_score_matching_learns_a_gaussian(criterion):
    """Its precision, or that of the density smoothed by the noise, also with correlated columns."""
    root = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-0.3, 0.2, 0.5]]).double()
    x = torch.randn(20000, 3, generator=stream(0, "gaussian")).double() @ root.T + 1
    energy = Quadratic(torch.eye(3).tolist())
    chosen = score_matching.Config(criterion=criterion, sigmas=(0.4,), num_slices=4)
    objective = score_matching.ScoreMatching(chosen, energy)
    optimizer = torch.optim.LBFGS(energy.parameters(), max_iter=80, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(objective, energy, x).loss
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    noise = 0.4**2 * torch.eye(3).double() if criterion == "denoising" else 0
    learnt = (energy.precision + energy.precision.T).detach() / 2
    expected = torch.linalg.inv(root @ root.T + noise)
    assert ((learnt - expected).norm() / expected.norm()).item() < 0.03
    assert (energy.mean - 1).abs().max().item() < 0.03


def test_energy_discrepancy_is_its_definition():
    energy, x, s, m, w = Quadratic(P), data(), 0.4, 3, 0.7
    chosen = energy_discrepancy.Config(sigma=s, num_negatives=m, stabiliser=w)
    turn = loss_of(energy_discrepancy.EnergyDiscrepancy(chosen, energy), energy, x)
    generator = stream(0, "noise")
    xi = torch.randn(x.shape, generator=generator).double()
    others = torch.randn(m, *x.shape, generator=generator).double()
    ratios = [(energy(x) - energy(x + s * xi + s * other)).exp() for other in others]
    expected = (w / m + sum(ratios) / m).log().mean()
    assert turn.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    far = energy_discrepancy.discrepancy(torch.full((4,), 900.0), torch.zeros(m, 4), w)
    assert far.item() == pytest.approx(900.0, rel=1e-6)  # no overflow


def test_energy_discrepancy_learns_a_gaussian():
    x = 2 * torch.randn(20000, 3, generator=stream(0, "gaussian")).double() + 1
    energy = Quadratic(torch.eye(3).tolist())
    chosen = energy_discrepancy.Config(sigma=1.0, num_negatives=16)
    objective = energy_discrepancy.EnergyDiscrepancy(chosen, energy)
    optimizer = torch.optim.LBFGS(energy.parameters(), max_iter=60)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(objective, energy, x).loss
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert (energy.mean - 1).abs().max().item() < 0.1
    learnt = (energy.precision + energy.precision.T).detach() / 2
    assert (learnt - torch.eye(3) / 4).abs().max().item() < 0.04


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_smoothed_histogram_integrates_to_one_and_draws_what_it_says(n):
    x = torch.randn(3000, n, generator=stream(0, "h")) * torch.linspace(0.5, 2, n) + 1
    x[:, 0] += 3 * (torch.arange(3000) % 2)
    cells, points = {1: 50, 2: 30, 3: 12}[n], {1: 20001, 2: 900, 3: 110}[n]
    noise = histogram.build(histogram.Config(num_cells=cells, box_share=0.2), shape=(n,))
    noise.initialise(averages_of(x))
    low, high = noise.low - noise.margin, noise.high + noise.margin
    axes = [torch.linspace(a, b, points) for a, b in zip(low, high, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, n)
    density = noise.log_prob(grid).exp().double()
    volume = ((high - low) / (points - 1)).prod()
    assert (density.sum() * volume).item() == pytest.approx(1, abs=0.02)

    drawn, log_q = noise.draw(torch.randn(100000, noise.latent_size, generator=stream(0, "z")))
    assert torch.equal(log_q, noise.log_prob(drawn)) and drawn.isfinite().all()
    for power in (1, 2):  # moments by draws and by the density
        integral = (density[:, None] * grid.double() ** power).sum(0) * volume
        by_draws = (drawn.double() ** power).mean(0)
        torch.testing.assert_close(by_draws, integral, rtol=0.03, atol=0.03)
    assert noise.log_prob(x).isfinite().all()  # no datum is outside
    inside = ((x > noise.low) & (x < noise.high)).all()
    assert inside and noise.log_prob(2 * high[None]).item() == -torch.inf


def test_a_histogram_without_width_is_refused():
    noise, x = histogram.build(histogram.Config(), shape=(2,)), torch.randn(50, 2)
    x[:, 1] = 3
    with pytest.raises(ConfigError, match="constant value has no width"):
        noise.initialise(averages_of(x))


def test_terms_cannot_be_added_to_noise_levels():
    values = settings("levels")
    values["objective"] = {"name": "composite_likelihood", "joint": values["objective"]}
    with pytest.raises(ConfigError, match="the inner objective learns noise levels"):
        config.from_values(values, Path("test"))


def test_denoising_needs_a_level():
    with pytest.raises(ConfigError, match=r"objective\.sigmas: needs at least one level"):
        params("denoising", objective={"sigmas": []})


def test_the_held_out_loss_is_that_of_all_samples(toy, monkeypatch):
    trainer = helpers.build(params("exact", train={"select_every": 3}), toy)
    chains = trainer.replay[0]
    trainer.selection.measure(1, trainer.averages, chains)
    whole = trainer.selection.last
    monkeypatch.setattr(selection, "_PART", 70)  # five parts of 300 samples
    trainer.selection.measure(1, trainer.averages, chains)
    assert trainer.selection.last == pytest.approx(whole, rel=1e-5)


def test_a_histogram_of_many_dimensions_is_refused():
    with pytest.raises(ConfigError, match="a histogram of 5 dimensions with 64 cells"):
        histogram.build(histogram.Config(), shape=(5,))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"pretraining": 3}, "objective.pretraining: this noise is known from the data"),
        ({"noise_learns": "value"}, "objective.pretraining: this noise is known from the data"),
        (
            {"generator": {"name": "histogram", "box_share": 0.0}},
            "box_share: must be greater than 0|greater than 0",
        ),
    ],
)
def test_settings_of_a_known_noise_that_do_not_fit(objective, message):
    with pytest.raises(ConfigError, match=message):
        params("histogram", objective=objective)


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("denoising", "discrepancy", "histogram", "levels", "matching")
]


@pytest.mark.parametrize("objective", ["based", *SLOW])
def test_two_workers_and_a_resumed_run_give_the_same_bits(toy, tmp_path, objective):
    select_every = 0 if objective == "matching" else 3
    chosen = {"train": {"num_shards": 2, "select_every": select_every}}
    helpers.build(params(objective, **chosen), toy).fit(tmp_path / "one", Silent())
    for stop in (5, 12):
        helpers.build(params(objective, **chosen), toy).fit(tmp_path / "cut", Silent(stop))
    spawn(2, tmp_path / "two", toy, settings(objective, **chosen))
    assert state_of(tmp_path / "one") == state_of(tmp_path / "cut") == state_of(tmp_path / "two")


def test_the_averages_with_the_lowest_held_out_loss_are_exported(toy, tmp_path):
    chosen = params(
        "histogram",
        train={"num_steps": 40, "select_every": 4, "log_every": 4},
        optimizer={"lr": 1.0, "decay": 0.0},
    )
    trainer, seen = helpers.build(chosen, toy), {}
    measure = trainer.selection.measure

    def noted(step, averages, replay):
        measure(step, averages, replay)
        seen[step] = (trainer.selection.last, state.named(averages)["energy.last.weight"].clone())

    trainer.selection.measure = noted
    trainer.fit(tmp_path / "run", Silent())
    best = min(seen, key=lambda step: seen[step][0])
    assert best < 40  # else the test says nothing
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, toy)
    weights = models.load(tmp_path / "model").energy.state_dict()
    assert torch.equal(weights["last.weight"], seen[best][1])
    rows = state.read_history(checkpoint.latest(tmp_path / "run"))
    assert [row["loss_held_out"] for row in rows] == [loss for loss, _ in seen.values()]


@pytest.mark.parametrize(
    ("objective", "changes", "message"),
    [
        ("histogram", {"train": {"select_every": 5, "num_tasks": 2}}, "is for one task"),
        ("flow", {}, "two steps cannot be compared"),
    ],
)
def test_early_stopping_that_cannot_be(objective, changes, message):
    values = settings("histogram", **({"train": {"select_every": 5}} | changes))
    if objective == "flow":
        values["objective"] |= {"generator": {"name": "flow"}, "noise_learns": "value"}
    with pytest.raises(ConfigError, match=message):
        config.from_values(values, Path("test"))


def matching(step, **rest):
    energy = Quadratic(P)
    chosen = energy_matching.Config(warm_up=0.5, num_langevin=6, **rest)
    objective = energy_matching.EnergyMatching(chosen, energy, num_steps=10)
    x = data(8)
    return energy, x, loss_of(objective, energy, x, step=step)


def transport(energy, x, epsilon, part=8):
    """Squared errors ``(B,)`` and times of the transport term, by the definition."""
    generator = stream(0, "transport")
    x0 = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for rows in torch.arange(len(x)).split(part):
        x0[rows] = x0[rows][energy_matching.coupled(x0[rows], x[rows])]
    t = torch.rand(len(x), generator=generator, dtype=torch.float64)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * x
    gradient = (x_t - energy.mean) @ energy.precision
    return ((epsilon * gradient + x - x0) ** 2).sum(1), t


@pytest.mark.parametrize("part", [8, 3])
def test_energy_matching_warms_up_by_transport(part):
    energy, x, turn = matching(step=4, num_coupled=part)
    errors, _ = transport(energy, x, 0.15, part)
    assert turn.loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)


def test_energy_matching_then_contrasts():
    """Weights of the transport, and negatives of both starts, step by step."""
    energy, x, turn = matching(step=5, tau=0.5, weight=0.7, epsilon=0.3)
    errors, t = transport(energy, x, 0.3)
    share = (2 * (1 - t)).clamp(max=1)
    generator = stream(0, "chain")
    z = torch.cat([x[:4], torch.randn(4, 3, generator=generator, dtype=torch.float64)])
    for rise in (0, 0, 0, 1 / 3, 2 / 3, 1):
        epsilon = torch.tensor([0.3] * 4 + [0.3 * rise] * 4).double()[:, None]
        noise = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        drift = -0.3 * ((z - energy.mean) @ energy.precision)
        z = (z + drift / 6 + (2 * epsilon / 6).sqrt() * noise).detach()
    gap = energy(x).mean() - energy(z).mean()
    expected = (share * errors).mean() + 0.7 * gap
    assert turn.loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert turn.energies["energy_gap"].item() == pytest.approx(gap.item(), rel=1e-4)


def test_the_coupling_is_the_cheapest():
    x0, x1 = (torch.randn(5, 2, generator=stream(i, "coupling")) for i in range(2))
    costs = {
        rows: ((x1 - x0[list(rows)]) ** 2).sum().item() for rows in itertools.permutations(range(5))
    }
    found = tuple(energy_matching.coupled(x0, x1).tolist())
    assert costs[found] == pytest.approx(min(costs.values()))


class Variances(EnergyModel):
    """``|x|^2 / 2 v_k``."""

    has_heads = True

    def __init__(self, num_levels):
        super().__init__()
        self.log_v = nn.Parameter(torch.zeros(num_levels, dtype=torch.float64))

    def forward(self, x, y=None):
        squares = (x**2).sum(1).view(-1, *[1] * (y.ndim - 1))
        return squares / 2 * (-self.log_v[y]).exp()


SIGMAS = (0.0, 0.7, 1.5)


LADDER = (0.3, 0.6, 1.4)


@pytest.mark.parametrize("data_sd", [None, 0.8])
def test_denoising_at_noise_levels(data_sd):
    """mean w_k |z + sigma_k s(x + sigma_k z, k)|^2 / 2,  w_k = 1 + sigma_k^2 / s^2."""
    energy, x = Variances(3), torch.randn(12, 2, generator=stream(0, "x")).double()
    with torch.no_grad():
        energy.log_v.copy_(torch.tensor([0.1, 0.5, 1.0]))
    chosen = score_matching.Config(noise_levels=True, sigmas=LADDER, data_sd=data_sd)
    (turn,) = turns_of(score_matching.ScoreMatching(chosen, energy), {"energy": energy}, x)
    z = torch.randn(x.shape, generator=stream(0, "noise")).double()
    expected, first = 0.0, int(torch.randint(3, (1,), generator=stream(0, "levels")))
    for i, (point, noise) in enumerate(zip(x, z, strict=True)):
        k = (first + i) % 3
        score = -(point + LADDER[k] * noise) / energy.log_v[k].exp()
        weight = 1 if data_sd is None else 1 + LADDER[k] ** 2 / data_sd**2
        expected += weight * ((noise + LADDER[k] * score) ** 2).sum().item() / 2 / len(x)
    assert turn.loss.item() == pytest.approx(expected, rel=1e-6)


def test_scaled_levels_are_the_formula():
    """|x|^2 / 2 v_k + s / sigma_k N(x / sqrt(v_k), k), also for several levels of a sample."""
    network, s = mlp.build(mlp.Config(hidden=(8,), heads=True), shape=(2,), num_classes=3), 0.8
    energy, x = Levels(network, LADDER, s), torch.randn(5, 2, generator=stream(0, "x"))
    several = energy(x, torch.tensor([[2, 0, 1]]).expand(5, -1))
    for column, k in enumerate((2, 0, 1)):
        v = LADDER[k] ** 2 + s**2
        inner = network(x / v**0.5, torch.full((5,), k))
        expected = (x**2).sum(1) / 2 / v + s / LADDER[k] * inner
        torch.testing.assert_close(several[:, column], expected)
        torch.testing.assert_close(energy(x, torch.full((5,), k)), expected)
    torch.testing.assert_close(energy(x), several[:, 1])


class Nothing(EnergyModel):
    def forward(self, x, y=None):
        return 0 * x.sum(1)


def test_scaled_levels_start_at_the_score_of_a_gaussian():
    """Where the data are N(0, s^2), nothing is left to learn: the loss is its least value."""
    energy, s = Levels(Nothing(), LADDER, 0.8), 0.8
    x = s * torch.randn(60000, 2, generator=stream(0, "data"))
    chosen = score_matching.Config(noise_levels=True, sigmas=LADDER, data_sd=s)
    (turn,) = turns_of(score_matching.ScoreMatching(chosen, energy), {"energy": energy}, x)
    # z given x + sigma z has the variance s^2 / v in each of the two dimensions, and w_k = v / s^2
    assert turn.loss.item() == pytest.approx(1.0, abs=0.01)


def test_a_focus_gives_levels_their_shares_of_the_batch():
    """Log-normal in sigma, and never more than one sample from it."""
    sigmas, seen = (0.1, 0.5, 1.0, 4.0), []

    class Watching(Nothing):
        def forward(self, x, y=None):
            seen.append(y)
            return 0 * x.sum(1)

    energy = Levels(Watching(), sigmas)
    chosen = score_matching.Config(noise_levels=True, sigmas=sigmas, focus=(0.5, 1.5))
    x = torch.zeros(1000, 2)
    turns_of(score_matching.ScoreMatching(chosen, energy), {"energy": energy}, x)
    weights = torch.exp(-((torch.tensor(sigmas) / 0.5).log() ** 2) / 2 / 1.5**2)
    counts = torch.bincount(seen[0], minlength=4)
    assert (counts - 1000 * weights / weights.sum()).abs().max() <= 1


def test_an_autoencoder_energy_is_the_square_that_is_left():
    shape = (2, 8, 12)
    network = autoencoder.build(autoencoder.Config(), shape=shape, num_classes=0)
    x = torch.rand(3, *shape, generator=stream(0, "x"))
    left = x - network.reconstruct(x, None)
    torch.testing.assert_close(network(x), (left**2).flatten(1).sum(1) / 2)
    of_levels = autoencoder.build(autoencoder.Config(confinement=0.5), shape=shape, num_classes=2)
    code = of_levels.code(y := torch.tensor([1, 0, 1]))
    f, a = of_levels.reconstruct(x, code), 1 + of_levels.gain(code).view(-1, 1, 1, 1)
    assert (a[0] - a[1]).abs() > 1e-3 and a[0] == a[2]
    expected = (f**2 / 2 - a * x * f + x**2 / 4).flatten(1).sum(1)
    torch.testing.assert_close(of_levels(x, y), expected)
    with pytest.raises(ConfigError, match="halves images 2 times, and 10x8 pixels cannot be"):
        autoencoder.build(autoencoder.Config(), shape=(1, 10, 8), num_classes=0)


LEVELS = {"noise_levels": True, "sigmas": [0.1, 0.3]}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"data_sd": 0.3}, "objective.data_sd: is a setting of noise_levels"),
        ({"focus": [0.3, 1.0]}, "objective.focus: is a setting of noise_levels"),
        ({"base": {"name": "mixture"}}, "objective.base: is a setting of noise_levels"),
        ({"base_from": 0.2}, "objective.base_from: there is no base"),
        (LEVELS | {"base": {"name": "mixture"}}, "objective.base: needs data_sd"),
        (LEVELS | {"data_sd": 1.0, "base": {"name": "gaussian"}}, "under noise is not known"),
        (LEVELS | {"data_sd": 1.0, "base_from": 0.2}, "objective.base_from: there is no base"),
        (LEVELS | {"base": 3}, "objective.base: a name is needed"),
        ({"noise_levels": True, "sigmas": [0.3, 0.1]}, "two or more levels, in growing order"),
        ({"noise_levels": True, "conditional": True}, "conditional: has no meaning"),
        ({"noise_levels": True, "criterion": "exact"}, "exact adds no noise"),
    ],
)
def test_settings_of_noise_levels_that_do_not_fit(objective, message):
    with pytest.raises(ConfigError, match=message):
        params("denoising", objective=objective)


def levels(first_share=0.4):
    chosen = level_classification.Config(
        generator=gaussian.Config(covariance="diagonal"),
        sigmas=SIGMAS,
        first_share=first_share,
        pretraining=1,
    )
    noise = gaussian.build(chosen.generator, shape=(2,)).double()
    with torch.no_grad():
        noise.log_diagonal.copy_(torch.tensor([1.0, 0.8]))
    networks = {
        "energy": Levels(Variances(3), SIGMAS),
        "log_z": level_classification.LogPartitions(3).double(),
        "generator": noise,
    }
    return level_classification.LevelClassification(chosen, networks), networks


def turns_of(objective, networks, x):
    replay = ReplayShard(4, x.shape[1:], None, range(1), stream(0, "chains"))
    context = StepContext(1, replay, networks, lambda purpose: stream(0, purpose))
    return list(objective.turns(Batch(x, torch.zeros(len(x), dtype=torch.long)), context))


def test_levels_are_classified_by_their_densities():
    """The loss is the cross-entropy of the class under normalised densities and shares."""
    objective, networks = levels()
    with torch.no_grad():
        networks["energy"].network.log_v.copy_(torch.tensor([0.1, 0.5, 1.0]))
        networks["log_z"].value.copy_(torch.tensor([0.3, -0.2, 0.9]))
    x = torch.randn(20, 2, generator=stream(0, "x")).double()
    energy_turn, log_z_turn = turns_of(objective, networks, x)
    counts = [8, 4, 4, 4]
    assert level_classification.class_counts(20, 4, 0.4) == counts
    z = torch.randn(20, 2, generator=stream(0, "noise")).double()
    sigma = torch.tensor([0.0] * 8 + [0.7] * 4 + [1.5] * 4)[:, None]
    latents = torch.randn(4, 2, generator=stream(0, "latents"))
    drawn = networks["generator"](latents.double())
    points = torch.cat([x[:16] + sigma * z[:16], drawn])
    label = [0] * 8 + [1] * 4 + [2] * 4 + [3] * 4
    loss = 0.0
    for point, k in zip(points, label, strict=True):
        v, c = networks["energy"].network.log_v.exp(), networks["log_z"].value
        density = [(-(point @ point) / 2 / v[j] - c[j]).exp() * counts[j] for j in range(3)]
        density.append(networks["generator"].log_prob(point[None]).exp()[0] * counts[3])
        loss = loss - (density[k] / sum(density)).log() / 20
    assert energy_turn.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert log_z_turn.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert energy_turn.metrics["log_z"].item() == pytest.approx(0.3)


def test_levels_learn_variance_and_log_z():
    """v_k = v + sigma_k^2, and c_k is the log of the integral."""
    objective, networks = levels(first_share=0.3)
    x = 1.2 * torch.randn(60000, 2, generator=stream(0, "data")).double()
    parameters = [networks["energy"].network.log_v, networks["log_z"].value]
    optimizer = torch.optim.LBFGS(parameters, max_iter=60)

    def closure():
        optimizer.zero_grad()
        energy_turn, log_z_turn = turns_of(objective, networks, x)
        (energy_turn.loss + log_z_turn.loss).backward()
        return energy_turn.loss

    for _ in range(3):
        optimizer.step(closure)
    expected = 1.44 + torch.tensor(SIGMAS).double() ** 2
    torch.testing.assert_close(parameters[0].exp().detach(), expected, rtol=0.05, atol=0)
    log_z = (2 * torch.pi * expected).log()
    torch.testing.assert_close(parameters[1].detach(), log_z, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("batch_size", "num_classes", "share"), [(4, 4, 0.9), (7, 3, 0.01), (500, 6, 0.4), (9, 2, 1.0)]
)
def test_each_class_has_a_sample(batch_size, num_classes, share):
    counts = level_classification.class_counts(batch_size, num_classes, share)
    assert sum(counts) == batch_size and len(counts) == num_classes and min(counts) >= 1


@pytest.mark.parametrize("heads", [False, True])
def test_energies_of_several_levels_are_those_of_each(heads):
    network = mlp.build(
        mlp.Config(hidden=(8, 6), confinement=0.5, heads=heads), shape=(3,), num_classes=4
    )
    energy, x = Levels(network, (0.0, 0.1, 0.2, 0.3)), torch.randn(5, 3)
    several = energy(x, torch.tensor([[2, 0, 3]]).expand(5, -1))
    for column, level in enumerate((2, 0, 3)):
        alone = energy(x, torch.full((5,), level))
        torch.testing.assert_close(several[:, column], alone)
    torch.testing.assert_close(energy(x), energy(x, torch.zeros(5, dtype=torch.long)))
    assert (energy(x) != energy(x, torch.ones(5, dtype=torch.long))).all()


def test_an_energy_of_levels_is_built_for_the_objective():
    energy = build_energy(params("levels", energy={"heads": True}), (2,), 0)
    assert isinstance(energy, Levels) and energy.sigmas.tolist() == pytest.approx([0.0, 0.2, 0.6])
    with pytest.raises(ConfigError, match="takes no labels and no noise levels"):
        params("exact", energy={"heads": True})


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"sigmas": [0.0, 0.1, 0.2, 0.3]}, "not enough for 4 levels and the noise"),
        ({"sigmas": [0.1]}, "needs two or more levels"),
        ({"sigmas": [0.0, 0.3, 0.2]}, "needs two or more levels"),
        ({"first_share": 1.0}, "leaves no sample"),
        ({"generator": {"name": "gaussian"}}, "must be above 0 for noise that learns"),
        ({"pretraining": 2}, "and 0 for histogram"),
        ({"generator": {"name": "mlp"}}, "needs a density"),
    ],
)
def test_settings_of_levels_that_do_not_fit(objective, message):
    with pytest.raises(ConfigError, match=message):
        params("levels", objective=objective)
