"""Noise contrastive estimation: flows against calculus, every loss against a plain transcript, log Z against known integrals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ebm_dist import config, evaluation, files, models
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.datasets import few_labels, toy2d
from ebm_dist.energies import averages_of
from ebm_dist.errors import ConfigError, DataError
from ebm_dist.evaluation import classification, density
from ebm_dist.generators import flow, gaussian, glow, histogram, pixelcnn
from ebm_dist.objectives import noise_contrastive, semi_supervised
from ebm_dist.rng import stream
from ebm_dist.training import checkpoint
from tests import helpers
from tests.helpers import Silent, spawn, state_of

NCE = {
    "dataset": {"name": "toy2d", "density": "8gaussians", "scale": 2.0, "sd": 0.354, "num_train": 512, "num_test": 1000},
    "energy": {"name": "mlp", "hidden": [16, 16]},
    "sampler": {"name": "mala"},
    "objective": {
        "name": "noise_contrastive", "generator": {"name": "flow", "num_couplings": 2, "hidden": [8]}, "pretraining": 2,
        "noise_learns": "value", "energy_lead": 1, "max_turn": 2,
    },
    "evaluation": {"density": {"grid": 100, "extent": 5.0, "num_steps": 0, "num_samples": 500, "temperatures": [1.0]}},
}  # fmt: skip
SEMI = {
    "dataset": {"name": "few_labels", "of": {"name": "toy2d", "density": "spirals", "num_train": 512, "num_test": 200}, "per_class": 3, "num_draws": 2},
    "energy": {"name": "classifier", "hidden": [16, 16]},
    "sampler": {"name": "mala"},
    "objective": {
        "name": "semi_supervised", "label_temperature": 2.0, "consistency_weight": 0.5, "entropy_weight": 0.2, "label_weight": 3.0, "unsupervised_weight": 0.7,
        "unsupervised": {"name": "noise_contrastive", "generator": {"name": "gaussian"}, "pretraining": 1},
    },
    "evaluation": {"classification": {"supervised_steps": 50}},
}  # fmt: skip


def settings(base=NCE, **changes):
    own = {name: section | changes.pop(name, {}) for name, section in base.items()}
    return helpers.values(**own, **changes)


def params(base=NCE, **changes):
    return config.from_values(settings(base, **changes), Path("test"))


def prepared(folder, base):
    chosen = params(base)
    shards.write(folder, "test", module_of(chosen.dataset).load(chosen.dataset))
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("toy") / "dataset", NCE)


@pytest.fixture(scope="module")
def spirals(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("spirals") / "dataset", SEMI)


FLOWS = {
    "gaussian": (gaussian, {}, (3,)),
    "diagonal": (gaussian, {"covariance": "diagonal"}, (3,)),
    "affine": (flow, {"kind": "affine", "num_couplings": 4}, (3,)),
    "spline": (flow, {"kind": "spline", "num_couplings": 4}, (3,)),
    "glow": (glow, {"hidden": 4}, (2, 4, 4)),
    "pixelcnn": (pixelcnn, {"width": 2, "num_blocks": 1}, (2, 3, 4)),
}
OF_IMAGES = ("glow", "pixelcnn")


def built(kind, shape=None):
    """A flow away from the identity."""
    torch.manual_seed(0)
    plugin, own, usual = FLOWS[kind]
    network = plugin.build(plugin.Config(**own), shape=shape or usual)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if kind in OF_IMAGES:
        network.spread.copy_(torch.tensor([0.5, 3.0]).view(2, 1, 1))
    return network


@pytest.mark.parametrize("kind", [kind for kind in FLOWS if kind not in OF_IMAGES])
def test_flows_integrate_to_one(kind):
    side = torch.linspace(-16, 16, 400)
    points = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)
    with torch.no_grad():
        mass = built(kind, (2,)).log_prob(points).double().exp().sum() * (32 / 399) ** 2
    assert mass.item() == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("kind", FLOWS)
def test_both_directions_of_a_flow_have_the_determinant_of_calculus(kind):
    network = built(kind).double()
    z = torch.randn(12, network.latent_size, generator=stream(0, "z"), dtype=torch.float64)
    x, log_q = network.draw(z)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(
            lambda v: network.draw(v[None])[0].flatten(), z[i]
        )
        expected = (
            torch.distributions.Normal(0.0, 1.0).log_prob(z[i]).sum()
            - torch.linalg.slogdet(jacobian).logabsdet
        )
        torch.testing.assert_close(log_q[i], expected)
    torch.testing.assert_close(network.log_prob(x), log_q)
    assert log_q.std() > 0.1


@pytest.mark.parametrize("kind", FLOWS)
def test_one_call_of_a_flow_has_what_a_loss_needs(kind):
    network = built(kind)
    z, x = torch.randn(5, network.latent_size), torch.randn(3, *network.shape)
    drawn, log_q, log_q_data = network(z, x)
    assert drawn.shape == (5, *network.shape) and log_q.shape == (5,)
    assert torch.equal(drawn, network(z)) and torch.equal(log_q_data, network(x=x))


def turns(toy, step, base=NCE, is_noises=False, **changes):
    """The turns of one step of one shard before any update, and all that they may use."""
    trainer = helpers.build(params(base, **changes), toy)
    trainer.step = step
    trainer.objective.players["log_z"].value.data.fill_(0.7)
    trainer.objective.players["log_z"].is_noises.fill_(is_noises)
    batch, context = trainer.batch(0), trainer.context(0)
    z = torch.randn(
        len(batch.x) * changes.get("objective", {}).get("noise_ratio", 1),
        2,
        generator=context.stream("latents"),
    )
    return trainer.objective.players, list(trainer.objective.turns(batch, context)), batch.x, z


def same_gradients(network, loss, expected):
    ours, theirs = (
        torch.autograd.grad(value, network.parameters(), retain_graph=True)
        for value in (loss, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def plain_value(players, x, noise, log_q, log_q_data, ratio):
    """V with posteriors written out: p / (p + nu q) of data, nu q / (p + nu q) of noise."""

    def density_of(points):
        return (-players["energy"](points) - players["log_z"].value).exp()

    p_data, p_noise, q_data, q_noise = (
        density_of(x),
        density_of(noise),
        ratio * log_q_data.exp(),
        ratio * log_q.exp(),
    )
    return (p_data / (p_data + q_data)).log().mean() + ratio * (
        q_noise / (p_noise + q_noise)
    ).log().mean()


@pytest.mark.parametrize("ratio", [1, 3])
def test_energy_and_constant_ascend_the_value(toy, ratio):
    players, found, x, z = turns(toy, 3, objective={"noise_ratio": ratio})
    assert [turn.player for turn in found] == ["energy", "log_z"]
    with torch.no_grad():
        noise, log_q, log_q_data = players["generator"](z, x)
    expected = -plain_value(players, x, noise, log_q, log_q_data, ratio)
    torch.testing.assert_close(found[0].loss, expected)
    same_gradients(players["energy"], found[0].loss, expected)
    same_gradients(players["log_z"], found[1].loss, expected)
    right = (-players["energy"](x) - 0.7 > log_q_data).float().mean() + (
        -players["energy"](noise) - 0.7 < log_q
    ).float().mean()
    torch.testing.assert_close(found[0].metrics["accuracy"], right / 2)


@pytest.mark.parametrize("ratio", [1, 3])
def test_the_flow_descends_it_through_samples_and_densities(toy, ratio):
    players, found, x, z = turns(toy, 3, is_noises=True, objective={"noise_ratio": ratio})
    assert [turn.player for turn in found] == ["generator"]
    expected = plain_value(players, x, *players["generator"](z, x), ratio)
    torch.testing.assert_close(found[0].loss, expected)
    same_gradients(players["generator"], found[0].loss, expected)


@pytest.mark.parametrize("learns", ["likelihood", "value"])
def test_the_noise_is_fitted_first_and_as_a_control_throughout(toy, learns):
    for step, is_noises in ((0, False), (1, True), (5, True)):
        players, (turn,), x, _ = turns(
            toy, step, is_noises=is_noises, objective={"noise_learns": learns}
        )
        assert turn.player == "generator"
        if step < 2 or learns == "likelihood":
            same_gradients(
                players["generator"], turn.loss, -players["generator"].log_prob(x).mean()
            )


def test_the_noise_has_a_rate_of_its_own_after_the_pretraining(toy):
    def moved(step, rate):
        trainer = helpers.build(params(objective={"noise_rate": rate}), toy)
        trainer.step = step
        trainer.objective.log_z.is_noises.fill_(True)
        before = torch.nn.utils.parameters_to_vector(trainer.objective.generator.parameters())
        trainer.advance()
        return (
            torch.nn.utils.parameters_to_vector(trainer.objective.generator.parameters()) - before
        ).detach()

    assert torch.equal(moved(1, 0.25), moved(1, 1.0)) and moved(1, 1.0).any()
    torch.testing.assert_close(moved(4, 0.25), 0.25 * moved(4, 1.0), rtol=1e-3, atol=1e-7)


def test_the_energy_leads_and_noise_that_never_learns_has_no_turn(toy):
    assert [turn.player for turn in turns(toy, 2, is_noises=True)[1]] == [
        "energy",
        "log_z",
    ]  # energy_lead
    trainer = helpers.build(params(objective={"noise_learns": "never"}), toy)
    trainer.fit(toy.parent / "never", Silent())
    assert not trainer.objective.log_z.is_noises and trainer.objective.log_z.noise_updates == 0


def test_odds_of_exp_50_still_count():
    u = torch.tensor([-50.0, 50.0], requires_grad=True)
    value = noise_contrastive.value(u[1:], u[:1], 1)
    assert value.item() == pytest.approx(-2 * math.exp(-50), rel=1e-5, abs=0)
    (gradient,) = torch.autograd.grad(value, u)
    assert gradient.tolist() == pytest.approx([-math.exp(-50), math.exp(-50)], rel=1e-5, abs=0)
    wrong = noise_contrastive.value(-u[1:], -u[:1], 1)
    assert wrong.item() == pytest.approx(-100)
    assert torch.autograd.grad(wrong, u)[0].tolist() == pytest.approx(
        [1, -1]
    )  # odds that are wrong do not saturate
    equal = noise_contrastive.value(torch.zeros(4), torch.zeros(4), 1)
    assert equal.item() == pytest.approx(
        -2 * math.log(2)
    )  # what remains where noise and data are the same


@pytest.mark.parametrize("ratio", [1, 4])
def test_the_constant_becomes_log_z(ratio):
    """Data N(0, s^2 I) and E = |x|^2 / (2 s^2) have log Z = log(2 pi s^2), and the value is concave in c."""
    sd, count = 0.5, 40000
    x = sd * torch.randn(count, 2, generator=stream(0, "data"), dtype=torch.float64)
    noise = torch.randn(ratio * count, 2, generator=stream(0, "noise"), dtype=torch.float64)
    c = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def u(points):
        log_q = -(points**2).sum(1) / 2 - math.log(2 * math.pi)
        return -(points**2).sum(1) / (2 * sd**2) - c - log_q - math.log(ratio)

    optimizer = torch.optim.LBFGS([c], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = -noise_contrastive.value(u(x), u(noise), ratio)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert c.item() == pytest.approx(math.log(2 * math.pi * sd**2), abs=0.02)


def test_whose_turn_is_next(toy):
    objective = helpers.build(
        params(
            objective={"turn_accuracy": 0.6, "min_turn": 2, "max_turn": 4, "accuracy_decay": 0.0}
        ),
        toy,
    ).objective

    def turns_of(accuracies, first_step=3):
        seen = []
        for step, accuracy in enumerate(accuracies, first_step):
            seen.append("f" if objective.log_z.is_noises else "e")
            objective.observe(step, {"accuracy": accuracy, "nll_generator": 3.0 + step})
        return "".join(seen)

    assert turns_of([0.9, 0.9], first_step=0) == "ee"  # pretraining and lead decide nothing
    assert objective.log_z() == 4.0  # c starts where the pretraining ended
    # told apart: the energy's turn ends after its least length; the flow learns until they are not, or for its longest
    assert turns_of([0.9] * 3 + [0.5] + [0.5] * 4 + [0.9] * 4) == "eeff" + "eeee" + "ffff"
    assert objective.log_z.noise_updates == 6
    objective.config = params(objective={"max_turn": 4, "accuracy_decay": 0.9}).objective
    objective.log_z.accuracy.fill_(0.5)
    objective.log_z.is_noises.fill_(False)
    objective.log_z.turn_steps.zero_()
    assert (
        turns_of([1.0] * 3) == "eee"
    )  # on average over the last steps: .55, .595, then .64 is above .6
    assert objective.log_z.is_noises
    assert objective.log_z.accuracy.item() == pytest.approx(1 - 0.5 * 0.9**3)


@pytest.mark.slow
def test_a_resumed_run_and_any_number_of_workers_take_the_same_turns(toy, tmp_path):
    own = {
        "objective": {
            "accuracy_decay": 0.0,
            "turn_accuracy": 0.65,
            "max_turn": 20,
            "pretraining": 1,
        },
        "train": {"num_steps": 40},
        "optimizer": {"lr": 0.02, "lr_factors": {"log_z": 5.0}},
    }
    trainer = helpers.build(params(**own), toy)
    decisions = []
    while trainer.step < 40:
        accuracy = trainer.advance().get("accuracy", torch.zeros(4))
        decisions.append([(accuracy[rank::2].mean() > 0.65).item() for rank in (0, 1)])
        trainer.step += 1
    assert any(
        one != other for one, other in decisions
    )  # two workers that decided by their own shards would part
    helpers.build(params(**own), toy).fit(tmp_path / "golden", golden := Silent())
    assert {"loss_energy", "loss_generator"} <= {name for row in golden.rows[2:] for name in row}
    expected = state_of(tmp_path / "golden")
    for stop_after in (1, 5, 22):
        helpers.build(params(**own), toy).fit(tmp_path / str(stop_after), Silent(stop_after))
        helpers.build(params(**own), toy).fit(tmp_path / str(stop_after), Silent())
        assert state_of(tmp_path / str(stop_after)) == expected
    spawn(2, tmp_path / "two", toy, settings(**own))
    assert state_of(tmp_path / "two") == expected


@pytest.mark.parametrize(
    "base", [pytest.param(NCE, marks=pytest.mark.slow), SEMI], ids=["flow", "semi-supervised"]
)
def test_ddp_agrees_with_ordered(base, toy, spirals, tmp_path):
    """Also where a loss calls the energy twice."""
    chosen = {"num_steps": 12, "checkpoint_every": 12, "num_shards": 2}
    data = toy if base is NCE else spirals
    spawn(2, tmp_path / "ddp", data, settings(base, train=chosen | {"reduce": "ddp"}))
    helpers.build(params(base, train=chosen), data).fit(tmp_path / "ordered", Silent())
    ours, theirs = (
        files.read_tensors(checkpoint.latest(tmp_path / name) / "weights.safetensors", "train")
        for name in ("ddp", "ordered")
    )
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-5)


def trained(base, data, folder, **changes):
    chosen = params(base, **changes)
    helpers.build(chosen, data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", chosen, data)
    return evaluation.Subject(
        models.load(folder / "model"), shards.read_index(data), {}, None
    ), chosen


def test_the_density_suite_integrates_what_was_learnt(toy, tmp_path):
    subject, chosen = trained(
        NCE,
        toy,
        tmp_path,
        objective={"generator": {"name": "gaussian"}},
        energy={"confinement": 1.0},
    )
    found = density.evaluate(chosen.evaluation["density"], subject)
    metrics, flat_picture = found.metrics, found.figures["density.png"]
    assert flat_picture.startswith(b"\x89PNG")
    assert metrics["log_z"]["importance"] == pytest.approx(metrics["log_z"]["grid"], abs=0.1)
    assert 0.1 < metrics["log_z"]["importance_ess"] <= 1
    assert metrics["log_z"]["error"] == abs(metrics["log_z"]["learnt"] - metrics["log_z"]["grid"])
    assert metrics["noise"]["integral"] == pytest.approx(1, abs=0.02)
    gap = metrics["nll"]["by_learnt"] - metrics["nll"]["by_grid"]
    assert gap == pytest.approx(metrics["log_z"]["learnt"] - metrics["log_z"]["grid"])
    assert metrics["nll"]["by_grid"] - metrics["nll"]["truth"] == pytest.approx(
        metrics["energy_kl"]["temperature_1"], abs=0.2
    )


def test_the_density_of_a_few_labels_is_that_of_all(spirals, tmp_path):
    flow_noise = {"name": "noise_contrastive", "generator": {"name": "flow", "hidden": [8]}}
    chosen = params(
        SEMI,
        objective={"unsupervised": flow_noise | {"noise_learns": "value", "pretraining": 1}},
        evaluation=NCE["evaluation"],
        train={"num_steps": 2},
    )
    helpers.build(chosen, spirals).fit(tmp_path / "run", helpers.Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, spirals)
    subject = evaluation.Subject(
        models.load(tmp_path / "model"), shards.read_index(spirals), {}, None
    )
    metrics = density.evaluate(chosen.evaluation["density"], subject).metrics
    truth = toy2d.density(toy2d.Config(density="spirals"))
    log_p = truth.log_prob(density._grid(chosen.evaluation["density"]))
    assert metrics["energy_kl"]["uniform"] == density.grid_kl(log_p, np.zeros_like(log_p))
    assert metrics["noise"]["js"] > 0


def test_divergences_on_a_grid():
    grid = density._grid(density.Config(grid=400, extent=6.0))

    def normal(mean):
        return -((grid - mean) ** 2).sum(axis=1) / 2

    assert density.grid_js(normal(0.0), normal(0.0) + 5) == pytest.approx(0, abs=1e-12)
    assert density.grid_kl(normal(0.0), normal(1.0)) == pytest.approx(1.0, abs=1e-3)  # |mean|^2 / 2
    halves = [np.where(grid[:, 0] > 0, 0.0, -np.inf), np.where(grid[:, 0] > 0, -np.inf, 0.0)]
    assert density.grid_js(*halves) == pytest.approx(math.log(2))
    assert (
        density.grid_js(normal(0.0), normal(1.0))
        < density.grid_js(normal(0.0), normal(2.0))
        < math.log(2)
    )
    assert density.grid_kl(halves[0], np.zeros(len(grid))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["checkerboard", "spirals", "pinwheel"])
def test_further_densities_are_normalised(name):
    truth = toy2d.density(toy2d.Config(density=name))
    grid = density._grid(density.Config(grid=200, extent=5.0))
    assert np.exp(truth.log_prob(grid)).sum() * (10 / 200) ** 2 == pytest.approx(1, abs=5e-3)
    x, mode = truth.draw(4000, np.random.default_rng(0))
    assert np.isfinite(truth.log_prob(x)).all()
    assert (truth.nearest(x)[1] < 4).mean() > 0.99
    assert (
        len(np.unique(mode))
        == truth.mode.max() + 1
        == {"checkerboard": 8, "spirals": 2, "pinwheel": 5}[name]
    )
    assert density.quality(truth, x, len(np.unique(mode)))["modes"] == len(np.unique(mode))
    drawn_elsewhere = (
        truth.log_prob(x + np.array([2.0, 0.0])) if name == "checkerboard" else np.array([-np.inf])
    )
    assert not np.isfinite(drawn_elsewhere).any()


# ------------------------------------------------------------------------------------------------ few labels


def test_few_labels_are_few_and_drawn_anew_for_each_seed(spirals):
    index = shards.read_index(spirals)
    draws = [shards.read_labelled(index, seed) for seed in range(3)]
    assert all(torch.bincount(y).tolist() == [3, 3] for _, y in draws)
    assert not torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][0], draws[2][0])
    x, y = shards.read_split(index, "train")
    assert (
        not y.any() and index.statistics["train"]["class_counts"] is None
    )  # nothing knows the labels of the rest
    assert all((row == x).all(dim=1).any() for row in draws[0][0])
    for seed in (0, 1):
        trainer = helpers.build(
            config.from_values(settings(SEMI) | {"seed": seed}, Path("test")), spirals
        )
        assert torch.equal(trainer.context(0).labelled.x, draws[seed][0])


def test_even_labels_lie_at_equal_shares_of_the_arm():
    chosen = config.from_values(
        settings(SEMI, dataset={"per_class": 7, "placement": "even", "num_draws": 3}), Path("test")
    ).dataset
    data = few_labels.load(chosen)
    whole = toy2d.load(chosen.of).splits["train"]
    for draw in range(3):
        x, y = data.splits[f"labelled-{draw}"]
        for k in (0, 1):
            of_class = np.sort(np.linalg.norm(whole.x[whole.y == k], axis=1))
            shares = np.searchsorted(of_class, np.linalg.norm(x[y == k], axis=1)) / len(of_class)
            assert np.allclose(np.diff(np.sort(shares)), 1 / 7, atol=0.01)
    with pytest.raises(
        DataError, match=r"dataset\.per_class: class 0 has \d+ samples, fewer than 400"
    ):
        few_labels.load(
            config.from_values(settings(SEMI, dataset={"per_class": 400}), Path("test")).dataset
        )
    with pytest.raises(DataError, match=r"dataset\.of: has no labels"):
        few_labels.load(
            config.from_values(settings(SEMI, dataset={"of": NCE["dataset"]}), Path("test")).dataset
        )


def test_without_labels_the_energy_is_that_of_p_of_x(spirals):
    energy = helpers.build(params(SEMI), spirals).objective.players["energy"]
    x = torch.randn(6, 2)
    each = torch.stack([energy(x, torch.full((6,), k)) for k in (0, 1)], dim=1)
    torch.testing.assert_close(energy(x, torch.tensor([[0, 1]]).expand(6, 2)), each)
    torch.testing.assert_close((-energy(x)).exp(), (-each).exp().mean(dim=1))


def semi_turns(spirals, step=1, **changes):
    trainer = helpers.build(params(SEMI, **changes), spirals)
    trainer.step = step
    batch, context = trainer.batch(0), trainer.context(0)
    plain = next(trainer.objective.inner.turns(batch, context))
    return trainer, next(trainer.objective.turns(batch, context)), plain, batch.x, context


def test_the_labels_join_the_loss_of_the_energy(spirals):
    trainer, turn, plain, x, context = semi_turns(
        spirals, objective={"radius": 3.0}
    )  # so far that the divergence has a direction
    energy = trainer.objective.players["energy"]

    def p(points):
        each = torch.stack([-energy(points, torch.full((len(points),), k)) for k in (0, 1)], dim=1)
        return torch.softmax(each / 2.0, dim=1)

    right = p(context.labelled.x)[torch.arange(6), context.labelled.y]
    here = p(x)
    near = p(x + trainer.objective._adversary(x, 2, context))
    entropy = -(here * here.log()).sum(dim=1).mean()
    divergence = (here.detach() * (here.detach().log() - near.log())).sum(dim=1).mean()
    expected = 0.7 * plain.loss - 3.0 * right.log().mean() + 0.5 * divergence + 0.2 * entropy
    torch.testing.assert_close(turn.loss, expected)
    same_gradients(energy, turn.loss, expected)
    assert {"accuracy", "cross_entropy", "class_entropy"} <= set(turn.metrics)


def test_weights_without_labels_rise_and_the_batch_of_labels_is_bounded(spirals):
    _, whole, _, _, _ = semi_turns(spirals)
    _, early, plain, _, _ = semi_turns(spirals, objective={"label_ramp": 1.0})  # step 2 of 12
    without = [0.7 * plain.loss + 3.0 * turn.metrics["cross_entropy"] for turn in (whole, early)]
    torch.testing.assert_close(
        early.loss - without[1], (whole.loss - without[0]) / 6, rtol=1e-3, atol=1e-6
    )
    trainer, few, _, _, _ = semi_turns(spirals, objective={"label_batch": 1})
    assert few.metrics["label_accuracy"] in (0, 1)
    assert trainer.context(0).labelled.x.shape == (6, 2)


def test_the_adversary_is_the_worst_of_its_length(spirals):
    """Near x the divergence is a quadratic form; one power iteration finds its leading direction better than chance, and no norm else."""
    trainer, _, _, x, context = semi_turns(spirals, objective={"radius": 0.05})
    objective, energy = trainer.objective, trainer.objective.players["energy"]
    r = objective._adversary(x, 2, context)
    torch.testing.assert_close(r.norm(dim=1), torch.full((len(x),), 0.05))
    here = objective._logits(energy, x, 2)

    def divergence(step):
        return semi_supervised._divergence(here, objective._logits(energy, x + step, 2)).item()

    around = [
        divergence(0.05 * torch.tensor([math.cos(a), math.sin(a)]))
        for a in np.linspace(0, math.pi, 8)
    ]
    assert divergence(r) > max(around)


def test_the_model_classifies_and_the_suite_compares(spirals, tmp_path):
    subject, chosen = trained(SEMI, spirals, tmp_path)
    x, _ = shards.read_split(subject.data, "test")
    p = subject.model.classify(x)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(len(x)))
    torch.testing.assert_close(p, (-subject.model.energies_by_class(x) / 2.0).softmax(dim=1))
    found = classification.evaluate(chosen.evaluation["classification"], subject)
    assert found.metrics["gain"] == pytest.approx(
        found.metrics["accuracy"] - found.metrics["scores"]["supervised"]["accuracy"]
    )
    assert found.metrics["scores"]["chance"]["accuracy"] == 0.5
    assert found.metrics["scores"]["propagation"]["accuracy"] > 0.6
    assert (
        all(content.startswith(b"\x89PNG") for content in found.figures.values())
        and len(found.figures) == 2
    )


def test_calibration_of_known_predictions():
    truth = np.array([0, 0, 1, 1])
    sure = np.array([[0.8, 0.2]] * 4)
    assert classification.score_predictions(truth, sure) == {
        "accuracy": 0.5,
        "nll": pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2),
        "calibration_error": pytest.approx(0.3),
    }
    perfect = np.eye(2)[truth]
    assert classification.score_predictions(truth, perfect)["calibration_error"] == 0


def test_a_model_without_labels_does_not_classify(toy, tmp_path):
    subject, _ = trained(NCE, toy, tmp_path)
    with pytest.raises(
        DataError, match=r"has learnt no p\(y \| x\); train one with objective semi_supervised"
    ):
        subject.model.classify(torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("base", "change", "expected"),
    [
        (NCE, {"objective": {"generator": {"name": "mlp"}}}, r"objective\.generator: noise needs a density: use gaussian, mixture, histogram, flow, glow or pixelcnn"),
        (NCE, {"objective": {"min_turn": 5}}, r"objective\.max_turn: must be at least objective\.min_turn = 5, found 2"),
        (SEMI, {"energy": {"name": "mlp"}}, r"energy\.name: semi-supervised learning needs .*use classifier"),
        (SEMI, {"objective": {"unsupervised": {"name": "noise_contrastive", "generator": {"name": "dcgan"}}}}, "noise needs a density"),
        (SEMI, {"objective": {"unsupervised": {"name": "noise_contrastive", "generator": {"name": "flo"}}}}, r"unsupervised\.generator\.name: no 'flo' .*did you mean 'flow'"),
        (SEMI, {"optimizer": {"lr_factors": {"flow": 2.0}}}, r"no player flow; players: energy, log_z, generator"),
        (NCE, {"evaluation": {"classification": {}}}, "needs an objective that learns labels"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_training(base, change, expected):
    with pytest.raises(ConfigError, match=expected):
        params(base, **change)


def test_semi_supervised_learning_needs_labels(toy):
    own = settings(SEMI) | {"dataset": NCE["dataset"]}
    with pytest.raises(ConfigError, match="needs samples with labels; use dataset few_labels"):
        helpers.build(config.from_values(own, Path("test")), toy).advance()


def test_data_may_have_noise_of_their_own(toy):
    _, (turn,), x, _ = turns(
        toy, 0, objective={"generator": {"name": "gaussian"}, "data_noise": 0.5}
    )
    noised = x + 0.5 * torch.randn(
        x.shape, generator=helpers.build(params(), toy).context(0).stream("data_noise")
    )
    expected = (noised**2).sum(dim=1).mean() / 2 + math.log(
        2 * math.pi
    )  # of the Gaussian that it starts as
    torch.testing.assert_close(turn.loss, expected)


@pytest.mark.parametrize("n", [100, 70_000])
def test_a_histogram_has_room_for_one_far_sample(n):
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0)) * 1e-3
    x[0] = 1e3
    noise = histogram.build(histogram.Config(), shape=(1,))
    noise.initialise(averages_of(x))
    assert noise.low < x.min() and noise.high > x.max()
    assert noise.log_prob(x[:2]).isfinite().all()
