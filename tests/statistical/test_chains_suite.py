"""The suite of chains: it tells a sampler that mixes from one that does not, and a chain's start from its end."""

import json

import pytest
import torch
from torch import nn

from ebm_dist import evaluation
from ebm_dist.data import shards
from ebm_dist.datasets import toy2d
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import chains, long_run
from ebm_dist.models.trained import TrainedModel
from tests import helpers


class Well(nn.Module):
    """A well in the middle of the range."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return 50 * ((x.flatten(1) - 0.5) ** 2).sum(1)


class TwoWells(nn.Module):
    """Far apart; chains from noise always fall into the right one, which is nearer to the middle."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return -torch.logsumexp(
            torch.stack([-50 * ((x.flatten(1) - at) ** 2).sum(1) for at in (0.05, 0.7)]), dim=0
        )


class WellsOfClasses(nn.Module):
    """One for each class, somewhere else."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 50 * ((x.flatten(1) - 0.1 - 0.08 * y[:, None]) ** 2).sum(1)


LANGEVIN = {"name": "langevin", "step_size": 2e-3, "noise_scale": 0.0632}
MALA = {"name": "mala", "step_size": 0.03}


def metrics(
    digits_data, energy: nn.Module, chains_at: torch.Tensor, suite: dict | None = None, **objective
) -> dict:
    params = helpers.params(
        sampler=LANGEVIN,
        objective=objective,
        evaluation={"chains": {"num_chains": 40, "num_draws": 400, "thin": 4} | (suite or {})},
    )
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    model = TrainedModel(energy.eval(), chains_at, torch.arange(len(chains_at)) % 10, params, card)
    return chains.evaluate(
        params.evaluation["chains"], evaluation.Subject(model, index, {}, None)
    ).metrics


def at(where: float) -> torch.Tensor:
    return torch.full((40, 1, 8, 8), where)


def test_one_well_mixes_from_everywhere(digits_data):
    found = metrics(digits_data, Well(), at(0.5))
    assert all(found[name]["rhat"] < 1.02 for name in ("noise", "replay", "both")), found
    assert found["noise"]["draws"] == 40 * 200, "the first half is warm-up"
    assert found["both"]["ess_bulk"] > 2000 and found["noise"]["num_not_finite"] == 0


def test_chains_that_agree_among_themselves_but_not_with_others_are_found(digits_data):
    found = metrics(digits_data, TwoWells(), at(0.05))
    assert found["replay"]["rhat"] < 1.03 and found["noise"]["rhat"] < 1.03, found
    assert found["both"]["rhat"] > 1.2, found


class Pit(nn.Module):
    """The data lie on a slope that goes down to black, far below them."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return x.flatten(1).sum(1)


def test_a_long_run_tells_where_chains_leave_the_data(digits_data):
    index = shards.read_index(digits_data)
    x, _ = shards.read_split(index, "train")
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}

    def found(energy, step_size, noise_scale):
        params = helpers.params(
            sampler={"name": "langevin", "step_size": step_size, "noise_scale": noise_scale}
        )
        model = TrainedModel(energy.eval(), torch.zeros(0), torch.zeros(0), params, card)
        config = long_run.Config(num_steps=1000, num_chains=20)
        return long_run.evaluate(config, evaluation.Subject(model, index, {}, None))

    report = found(Pit(), 0.002, 0.0)  # all pixels black after 500 steps
    steps = [row["step"] for row in report.tables["long_run"] if row["chains_from"] == "data"]
    assert steps == [0, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    low = x.flatten(1).sum(1).quantile(0.01)
    start = shards.read_split(index, "test")[0][:20]
    medians = {
        step: (start - 0.002 * step).clamp(min=0).flatten(1).sum(1).quantile(0.5) for step in steps
    }
    assert (
        report.metrics["data"]["last_step_within"]
        == max(step for step in steps if medians[step] >= low)
        < 464
    )
    assert (
        report.metrics["data"]["is_within_data"] == 0 and report.metrics["data"]["at_bounds"] == 1
    )
    calm = found(Pit(), 1e-9, 0.0).metrics
    assert calm["data"]["is_within_data"] == 1 and calm["data"]["last_step_within"] == 1000
    assert (
        calm["noise"]["is_within_data"] == 0 and calm["noise"]["last_step_within"] == 0
    )  # noise is brighter than any digit
    assert set(report.figures) == {"data.png", "noise.png", "energy.png"}


def test_only_chains_of_the_same_class_are_compared(digits_data):
    found = metrics(digits_data, WellsOfClasses(), at(0.5), conditional=True)
    assert all(found[name]["rhat"] < 1.1 for name in ("noise", "replay", "both")), found
    assert found["both"]["ess_bulk"] > 1500


class TwoModes(nn.Module):
    """Gaussians in the plane, 15 standard deviations apart: a barrier of 28 nats."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return -torch.logsumexp(
            torch.stack(
                [-12.5 * ((x - torch.tensor([at, 0.0])) ** 2).sum(1) for at in (-1.5, 1.5)]
            ),
            dim=0,
        )


@pytest.fixture(scope="module")
def plane_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "plane"
    shards.write(
        folder, "toy2d", toy2d.load(toy2d.Config(density="8gaussians", num_train=512, num_test=64))
    )
    return folder


def plane_metrics(plane_data, sampler: dict, **suite) -> dict:
    """Chains from noise start on both sides, those of the replay buffer in the left mode."""
    options = {"num_chains": 100, "num_draws": 200, "thin": 3, "num_components": 2} | suite
    params = helpers.params(
        dataset={"name": "toy2d"}, sampler=sampler, evaluation={"chains": options}
    )
    card = {"shape": [2], "bounds": None, "num_classes": 0}
    left = torch.tensor([-1.5, 0.0]).repeat(100, 1)
    model = TrainedModel(TwoModes().eval(), left, torch.zeros(100, dtype=torch.long), params, card)
    subject = evaluation.Subject(model, shards.read_index(plane_data), {}, None)
    return chains.evaluate(params.evaluation["chains"], subject).metrics


@pytest.mark.slow
def test_tempered_chains_mix_between_modes_that_plain_chains_do_not_leave(plane_data):
    plain = plane_metrics(plane_data, MALA)
    assert plain["noise"]["rhat"] > 1.5 and plain["both"]["rhat"] > 1.5, plain
    assert not {"step_size", "swap_rates", "steps_to_rhat"} & plain["noise"].keys()
    tempered = plane_metrics(plane_data, MALA, temperatures=[1.0, 3.0, 9.0, 27.0])
    assert all(tempered[name]["rhat"] < 1.1 for name in ("noise", "replay", "both")), tempered
    assert all(tempered[name]["steps_to_rhat"] > 0 for name in ("noise", "replay", "both"))
    assert tempered["both"]["ess_bulk"] > 400 and "step_size" not in tempered["noise"]
    for name in ("noise", "replay"):
        assert tempered[name]["swap_rates"].keys() == {"pair_1", "pair_2", "pair_3"}
        assert all(0.1 < rate < 0.9 for rate in tempered[name]["swap_rates"].values()), tempered


@pytest.mark.slow
def test_a_warm_up_adapts_the_step_size(plane_data):
    slow = MALA | {"step_size": 1e-5}
    assert plane_metrics(plane_data, slow)["noise"]["acceptance_rate"] > 0.99
    adapted = plane_metrics(plane_data, slow, warm_up=300)
    for name in ("noise", "replay"):
        assert (
            abs(adapted[name]["acceptance_rate"] - 0.574) < 0.08
            and 0.01 < adapted[name]["step_size"] < 0.3
        ), adapted
        assert "swap_rates" not in adapted[name]
    uneven = [1.0, 1.1, 1.2, 27.0]
    both = plane_metrics(plane_data, slow, warm_up=300, temperatures=uneven)
    assert both["both"]["rhat"] < 1.1 and both["noise"].keys() >= {"step_size", "swap_rates"}, both
    for name in ("noise", "replay"):
        rates, ladder = both[name]["swap_rates"].values(), [*both[name]["temperatures"].values()]
        assert max(rates) - min(rates) < 0.12, both
        assert ladder[0] == 1 and ladder[-1] == pytest.approx(27) and ladder == sorted(ladder)
        assert both[name]["barrier"] == pytest.approx(3 - sum(rates))
        assert both[name]["round_trips"] > 3


@pytest.mark.slow
def test_replicas_of_a_chain_keep_its_class(digits_data):
    found = metrics(
        digits_data, WellsOfClasses(), at(0.5), {"temperatures": [1.0, 1.1, 1.21]}, conditional=True
    )
    assert all(found[name]["rhat"] < 1.1 for name in ("noise", "replay", "both")), found


@pytest.mark.parametrize(
    ("sampler", "suite", "message"),
    [
        (LANGEVIN, {"warm_up": 10}, "needs a sampler that accepts or rejects, not langevin"),
        (MALA, {"temperatures": [2.0, 4.0]}, "temperatures must start at 1 and grow"),
        (MALA, {"temperatures": [1.0, 1.0]}, "temperatures must start at 1 and grow"),
        (
            LANGEVIN | {"noise_scale": 0.0},
            {"temperatures": [1.0, 2.0]},
            "needs a sampler with noise",
        ),
    ],
)
def test_samplers_that_cannot_be_adapted_or_tempered_are_refused(sampler, suite, message):
    with pytest.raises(ConfigError, match=message):
        helpers.params(sampler=sampler, evaluation={"chains": suite})


def test_components_are_those_of_the_data(digits_data):
    x, _ = shards.read_split(shards.read_index(digits_data), "train")
    found = chains._principal_components(x, 3)
    along = found.of(x).double()
    assert torch.allclose(along.mean(dim=0), torch.zeros(3).double(), atol=1e-4)
    assert torch.allclose(along.T @ along / len(x), torch.eye(3).double(), atol=1e-3)
    spread = (x.flatten(1) - found.mean).double().norm() ** 2 / len(x)
    explained = torch.linalg.svdvals((x.flatten(1) - found.mean).double())[:3] ** 2 / len(x)
    assert explained[0] > explained[1] > explained[2] and explained.sum() < spread
    directions = found.directions.double().norm(dim=0) ** -2
    assert torch.allclose(directions, explained, rtol=1e-3)


def test_too_few_draws_are_refused():
    with pytest.raises(ConfigError, match="num_draws"):
        helpers.params(evaluation={"chains": {"num_draws": 4}})


class Cliff(nn.Module):
    """So steep that no proposal of a long step is accepted."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        return 1e12 * ((x.flatten(1) - 0.5) ** 2).sum(1)


@pytest.mark.parametrize(
    ("sampler", "places"), [({"name": "mala", "step_size": 1.0}, 40), (MALA, 1)]
)
def test_chains_that_never_move_report_what_is_defined(digits_data, sampler, places):
    params = helpers.params(
        sampler=sampler, evaluation={"chains": {"num_chains": 40, "num_draws": 8, "thin": 1}}
    )
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    positions = shards.read_split(index, "train")[0][:places].repeat(40 // places, 1, 1, 1)
    model = TrainedModel(Cliff(), positions, torch.zeros(40, dtype=torch.long), params, card)
    report = chains.evaluate(
        params.evaluation["chains"], evaluation.Subject(model, index, {}, None)
    )
    replay = report.metrics["replay"]
    assert replay["moved"] == replay["acceptance_rate"] == 0
    assert ("rhat" in replay) == (places > 1) and replay.get("rhat") is None  # infinite
    # quantities that all chains share, and those in which they differ
    assert replay["num_constant"] == (6 if places == 1 else 0)
    assert replay.get("ess_bulk") == (None if places == 1 else 40)
    json.dumps(report.metrics, allow_nan=False)
