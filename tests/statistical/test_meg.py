"""Maximum entropy generators: every loss against a plain transcript, the estimate of information against known densities."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.datasets import toy2d
from ebm_dist.energies import score
from ebm_dist.errors import ConfigError, DataError
from ebm_dist.evaluation import density
from ebm_dist.generators import LatentEnergy
from ebm_dist.metrics import inversion
from ebm_dist.models import latent
from ebm_dist.objectives import meg
from ebm_dist.rng import stream
from ebm_dist.samplers import mala, run_chain
from tests import helpers
from tests.helpers import Silent, spawn, state_of

MEG = {
    "dataset": {"name": "toy2d", "density": "8gaussians", "num_train": 512, "num_test": 64},
    "energy": {"name": "mlp", "hidden": [16, 16], "num_frequencies": 4},
    "sampler": {"name": "mala"},
    "objective": {
        "name": "meg", "generator": {"name": "mlp", "hidden": [16]}, "statistics_hidden": [16], "num_energy_steps": 2,
        "gradient_penalty": 0.3,
    },
}  # fmt: skip


def settings(**changes):
    own = {name: section | changes.pop(name, {}) for name, section in MEG.items()}
    return helpers.values(**own, **changes)


def params(**changes):
    return config.from_values(settings(**changes), Path("test"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    shards.write(folder, "toy2d", toy2d.load(params().dataset))
    return folder


def turns(toy, **changes):
    """The turns of the second step of one shard, with all that they may use, before any update."""
    trainer = helpers.build(params(**changes), toy)
    trainer.step = 1
    batch, context = trainer.batch(0), trainer.context(0)
    z = {
        purpose: torch.randn(
            len(batch.x), 2, generator=trainer.context(0).stream(f"latents/{purpose}")
        )
        for purpose in ("energy", "generator")
    }
    return trainer.objective.players, list(trainer.objective.turns(batch, context)), batch.x, z


def same_gradients(network, loss, expected):
    ours, theirs = (
        torch.autograd.grad(value, network.parameters(), retain_graph=True)
        for value in (loss, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["linear", "logistic", "relativistic"])
@pytest.mark.parametrize("negative_penalty", [0.0, 0.7])
def test_the_energy_s_turn_is_a_plain_transcript(toy, loss, negative_penalty):
    players, found, x, z = turns(
        toy, objective={"loss": loss, "negative_penalty": negative_penalty}
    )
    energy, fake = players["energy"], players["generator"](z["energy"]).detach()

    def squared_norm(points):
        points = points.clone().requires_grad_()
        return torch.stack(
            [
                (torch.autograd.grad(energy(points)[i], points, create_graph=True)[0][i] ** 2).sum()
                for i in range(len(points))
            ]
        ).mean()

    expected = {
        "linear": energy(x).mean() - energy(fake).mean(),
        "logistic": torch.log(1 + energy(x).exp()).mean()
        + torch.log(1 + (-energy(fake)).exp()).mean(),
        "relativistic": torch.log(1 + (energy(x) - energy(fake)).exp()).mean(),
    }[loss] + 0.3 * squared_norm(x)
    expected = expected + negative_penalty * squared_norm(fake)
    torch.testing.assert_close(found[0].loss, expected)
    same_gradients(energy, found[0].loss, expected)
    torch.testing.assert_close(found[0].metrics["score_norm_pos"], squared_norm(x).sqrt())


def test_the_penalty_of_wgan_gp_is_between_data_and_samples(toy):
    """Gulrajani et al. 2017, Algorithm 1, line 7."""
    own = {"lipschitz_weight": 10.0, "gradient_penalty": 0.0, "loss": "linear"}
    players, found, x, z = turns(toy, objective=own)
    energy, fake = players["energy"], players["generator"](z["energy"]).detach()
    trainer = helpers.build(params(objective=own), toy)
    trainer.step = 1
    share = torch.rand(len(x), 1, generator=trainer.context(0).stream("lipschitz"))
    between = (fake + share * (x - fake)).requires_grad_()
    rows = [
        torch.autograd.grad(energy(between[i : i + 1]).sum(), between, create_graph=True)[0][i]
        for i in range(len(x))
    ]
    penalty = torch.stack([(row.norm() - 1) ** 2 for row in rows]).mean()
    expected = energy(x).mean() - energy(fake).mean() + 10 * penalty
    torch.testing.assert_close(found[0].loss, expected)
    same_gradients(energy, found[0].loss, expected)


@pytest.mark.parametrize("loss", ["linear", "relativistic"])
def test_generator_and_statistics_raise_the_information(toy, loss):
    players, found, x, z = turns(toy, objective={"loss": loss, "mi_weight": 0.4})
    assert [turn.player for turn in found] == ["energy", "generator", "statistics"]
    z = z["generator"]
    fake = players["generator"](z)
    other = z[[len(z) - 1, *range(len(z) - 1)]]
    joint, apart = players["statistics"](fake, z), players["statistics"](fake, other)
    information = torch.sigmoid(joint).log().mean() + torch.sigmoid(-apart).log().mean()
    energy = players["energy"](fake)
    of_energy = (
        energy.mean()
        if loss == "linear"
        else torch.log(1 + (energy - players["energy"](x)).exp()).mean()
    )
    torch.testing.assert_close(found[1].metrics["mutual_information"], information)
    same_gradients(players["generator"], found[1].loss, of_energy - 0.4 * information)
    same_gradients(players["statistics"], found[2].loss, -information)


def test_the_generator_learns_in_every_second_step_and_its_weight_changes_linearly(toy):
    trainer = helpers.build(params(objective={"mi_weight": 1.0, "final_mi_weight": 0.2}), toy)
    players = [list(trainer.advance()) for trainer.step in range(4)]
    assert [any("loss_generator" in name for name in row) for row in players] == [
        False,
        True,
        False,
        True,
    ]
    assert trainer.objective._mi_weight(0) == 1.0
    assert trainer.objective._mi_weight(6) == pytest.approx(0.6)
    with pytest.raises(
        ConfigError,
        match=r"log_every: must be a multiple of objective\.num_energy_steps = 3, found 2",
    ):
        params(objective={"num_energy_steps": 3})


def test_information_of_known_densities():
    """At its best, T is the log ratio of p(x, z) and p(x) p(z), and I = 2 JSD - 2 log 2 (Goodfellow et al. 2014, Theorem 1)."""
    z = torch.randn(200000, 1, generator=stream(0, "z"), dtype=torch.float64)
    x = z + 0.5 * torch.randn(z.shape, generator=stream(0, "noise"), dtype=torch.float64)

    def log_ratio(x, z):
        conditional = torch.distributions.Normal(z, 0.5).log_prob(x)
        return (conditional - torch.distributions.Normal(0.0, 1.25**0.5).log_prob(x))[:, 0]

    u = (
        log_ratio(x, z),
        log_ratio(x, torch.randn(z.shape, generator=stream(0, "other"), dtype=torch.float64)),
    )
    half = math.log(2)
    divergence = (
        half - torch.log(1 + (-u[0]).exp()).mean() + half - torch.log(1 + u[1].exp()).mean()
    ) / 2
    assert meg.mutual_information(log_ratio, x, z).item() == pytest.approx(
        2 * divergence.item() - 2 * half, abs=0.01
    )
    assert meg.mutual_information(lambda x, z: torch.zeros(len(x)), x, z).item() == pytest.approx(
        -2 * half
    )
    for worse in (0.5, 2.0):
        assert meg.mutual_information(
            lambda x, z, worse=worse: worse * log_ratio(x, z), x, z
        ) < meg.mutual_information(log_ratio, x, z)


def test_the_bound_of_donsker_and_varadhan_at_its_best_is_the_information():
    """Of a Gaussian pair with correlation r, -log(1 - r^2) / 2; any other T is below."""
    z = torch.randn(400000, 1, generator=stream(0, "z"), dtype=torch.float64)
    x = z + 0.5 * torch.randn(z.shape, generator=stream(0, "noise"), dtype=torch.float64)

    def log_ratio(x, z, factor=1.0):
        conditional = torch.distributions.Normal(z, 0.5).log_prob(x)
        marginal = torch.distributions.Normal(0.0, 1.25**0.5).log_prob(x)
        return factor * (conditional - marginal)[:, 0]

    def bound(**more):
        return meg.mutual_information(
            lambda x, z: log_ratio(x, z, **more), x, z, "kullback_leibler"
        ).item()

    assert bound() == pytest.approx(-math.log(1 - 1 / 1.25) / 2, abs=0.01)
    assert bound(factor=0.5) < bound() > bound(factor=1.5)


def test_the_setting_chooses_the_information(toy):
    found = {}
    for name in ("jensen_shannon", "kullback_leibler"):
        trainer = helpers.build(params(objective={"information": name, "num_energy_steps": 1}), toy)
        found[name] = trainer.mean_over_shards(trainer.advance())["mutual_information"]
    assert found["jensen_shannon"] < 0 and abs(found["kullback_leibler"]) < 0.5


def test_chains_in_latent_space_are_exact_with_and_without_the_prior():
    """E = |x|^2 / 2 over G(z) = A z: a Gaussian of precision A'A / T, and with the prior, of weight T, A'A / T + I."""
    a = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    temperature = 0.5
    kernel = mala.build(mala.Config(step_size=0.05, temperature=temperature), bounds=None)
    for prior_weight in (0.0, temperature):
        target = LatentEnergy(lambda x: (x**2).sum(dim=1) / 2, lambda z: z @ a.T, prior_weight)
        z = torch.randn(20000, 2, generator=stream(0, "start"))
        z, stats = run_chain(kernel, target, z, 200, stream(0, "chain"))
        precision = a.T @ a / temperature + torch.eye(2) * prior_weight / temperature
        torch.testing.assert_close(
            torch.cov(z.T), torch.linalg.inv(precision), rtol=0.05, atol=0.01
        )
        assert 0.5 < stats.acceptance_rate < 1
    energy, drift = score(target, torch.tensor([[1.0, 2.0]]))
    assert energy.item() == pytest.approx((3.0**2 + 2.0**2) / 2 + temperature * 5 / 2)
    torch.testing.assert_close(
        drift, -(torch.tensor([[3.0, 2.0]]) @ a + temperature * torch.tensor([[1.0, 2.0]]))
    )


@pytest.mark.parametrize("name", ["25gaussians", "8gaussians", "swissroll"])
def test_densities_are_normalised_and_their_samples_are_good(name):
    truth = toy2d.density(toy2d.Config(density=name))
    grid = density._grid(density.Config(grid=300))
    log_p = truth.log_prob(grid)
    assert np.exp(log_p).sum() * (4 / 300) ** 2 == pytest.approx(1, abs=2e-3)
    x, _ = truth.draw(20000, np.random.default_rng(0))
    num_modes = int(truth.mode.max()) + 1
    assert num_modes == (8 if name == "8gaussians" else 25)
    found = density.quality(truth, x, num_modes)
    assert found["modes"] == num_modes and found["kl"] < 2e-3
    assert (
        found["quality"] == pytest.approx(1 - math.exp(-8), abs=6e-4) or name == "swissroll"
    )  # exp(-4^2 / 2) lie beyond 4 sd
    assert density.grid_kl(log_p, log_p + 3.0) == pytest.approx(0, abs=1e-9)
    # against the same blurred: KL(N(0, s^2 I) || N(0, 4 s^2 I)) = log 4 - 1 + 1 / 4, where the modes are far apart
    if name != "swissroll":
        blurred = truth._replace(sd=2 * truth.sd).log_prob(grid)
        assert density.grid_kl(log_p, blurred) == pytest.approx(math.log(4) - 0.75, abs=0.02)


def test_quality_counts_modes_and_their_shares():
    truth = toy2d.density(toy2d.Config(density="8gaussians"))
    one = truth.centres[:1].repeat(100, axis=0)
    assert density.quality(truth, one, 8) == {
        "modes": 1.0,
        "quality": 1.0,
        "kl": pytest.approx(math.log(8)),
    }
    far = one.copy()
    far[:25] += 5 * truth.sd
    assert density.quality(truth, far, 8)["quality"] == 0.75
    assert density.quality(truth, np.zeros((10, 2)), 8)["modes"] == 0


def test_all_players_come_back_from_a_checkpoint_and_any_number_of_workers_gives_the_same_bits(
    toy, tmp_path
):
    helpers.build(params(), toy).fit(tmp_path / "golden", Silent())
    golden = state_of(tmp_path / "golden")
    for stop_after in (1, 6):
        helpers.build(params(), toy).fit(tmp_path / str(stop_after), Silent(stop_after))
        helpers.build(params(), toy).fit(tmp_path / str(stop_after), Silent())
        assert state_of(tmp_path / str(stop_after)) == golden
    spawn(2, tmp_path / "two", toy, settings())
    assert state_of(tmp_path / "two") == golden


def test_double_backward_under_ddp_agrees_with_ordered(toy, tmp_path):
    from ebm_dist import files
    from ebm_dist.training import checkpoint

    chosen = {"num_steps": 20, "checkpoint_every": 20, "num_shards": 2}
    spawn(2, tmp_path / "ddp", toy, settings(train=chosen | {"reduce": "ddp"}))
    helpers.build(params(train=chosen), toy).fit(tmp_path / "ordered", Silent())
    ours, theirs = (
        files.read_tensors(checkpoint.latest(tmp_path / name) / "weights.safetensors", "train")
        for name in ("ddp", "ordered")
    )
    assert {name.partition(".")[0] for name in ours} == {"energy", "generator", "statistics"}
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)


def test_the_exported_model_draws_and_has_all_players(toy, tmp_path):
    from ebm_dist import models

    trainer = helpers.build(params(), toy)
    trainer.fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", params(), toy)
    trained = models.load(tmp_path / "model")
    assert set(trained.other_players) == {"generator", "statistics"}
    z = torch.randn(5, 2)
    assert torch.equal(trained.generator(z), trainer.averages["generator"](z))
    assert not any(p.requires_grad for p in trained.generator.parameters())
    plain, moved, kept = (
        latent.draw(trained, 500, "test", num_steps=n, with_prior=prior)
        for n, prior in ((0, False), (30, False), (30, True))
    )
    assert torch.equal(plain.x, latent.draw(trained, 500, "test").x) and plain.acceptance_rate == 1
    assert not torch.equal(plain.x, moved.x) and 0 < moved.acceptance_rate <= 1
    assert abs(kept.squared_norm - 1) < abs(moved.squared_norm - 1)
    assert F.mse_loss(kept.x, plain.x) > 0


def test_a_model_without_a_generator_says_so(digits_data, tmp_path):
    from ebm_dist import models

    helpers.build(helpers.params(), digits_data).fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", helpers.params(), digits_data)
    with pytest.raises(
        DataError, match="has no generator, only energy; train one with objective meg"
    ):
        latent.draw(models.load(tmp_path / "model"), 5, "test")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"generator": {"name": "mpl"}}, r"objective\.generator\.name: no 'mpl' .*did you mean 'mlp'"),
        ({"generator": {"name": "mlp", "latent_siz": 3}}, r"objective\.generator\.latent_siz: unknown key; did you mean 'latent_size'"),
        ({"generator": {"name": "mlp", "hidden": [0]}}, r"objective\.generator\.hidden\.0: .*greater than or equal to 1"),
        ({"generator": "mlp"}, r"objective\.generator: a name is needed; one of dcgan, flow, gaussian, glow, histogram, mixture, mlp, pixelcnn"),
        ({"generator": None}, r"objective\.generator: a name is needed"),
    ],
)  # fmt: skip
def test_a_plugin_in_a_plugin_is_checked_like_any(change, expected):
    with pytest.raises(ConfigError, match=expected):
        params(objective=change)
    with pytest.raises(
        ConfigError,
        match=r"optimizer\.lr_factors: no player generatr; players: energy, generator, statistics",
    ):
        params(optimizer={"lr_factors": {"generatr": 2.0}})
    own = params()
    assert config.from_values(own.as_dict(), Path("again")) == own


def test_what_a_generator_cannot_make_is_the_distance_to_its_samples():
    generator = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        generator.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
    made = generator(torch.randn(500, 2, generator=stream(0, "test"))).detach()
    weight = generator.weight.clone()
    error = inversion.error(generator, 2, made, 1500, 3e-3)
    assert error(made).mean() < 0.03
    torch.testing.assert_close(
        error(made + torch.tensor([0.0, 0.0, 1.5])).mean(), torch.tensor(1.5**2), rtol=0, atol=0.3
    )
    assert torch.equal(generator.weight, weight) and generator.weight.requires_grad
    torch.testing.assert_close(inversion.error(generator, 2, made, 1500, 3e-3)(made), error(made))
