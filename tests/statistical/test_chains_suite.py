"""The suite of chains: it tells a sampler that mixes from one that does not, and a chain's start from its end."""

import pytest
import torch
from torch import nn

from ebm_dist import evaluation
from ebm_dist.data import shards
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
        return -torch.logsumexp(torch.stack([-50 * ((x.flatten(1) - at) ** 2).sum(1) for at in (0.05, 0.7)]), dim=0)


class WellsOfClasses(nn.Module):
    """One for each class, somewhere else."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 50 * ((x.flatten(1) - 0.1 - 0.08 * y[:, None]) ** 2).sum(1)


def metrics(digits_data, energy: nn.Module, chains_at: torch.Tensor, **objective) -> dict:
    params = helpers.params(
        sampler={"name": "langevin", "step_size": 2e-3, "noise_scale": 0.0632},
        objective=objective,
        evaluation={"chains": {"num_chains": 40, "num_draws": 400, "thin": 4}},
    )
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    model = TrainedModel(energy.eval(), chains_at, torch.arange(len(chains_at)) % 10, params, card)
    return chains.evaluate(params.evaluation["chains"], evaluation.Subject(model, index, {}, None)).metrics


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
        params = helpers.params(sampler={"name": "langevin", "step_size": step_size, "noise_scale": noise_scale})
        model = TrainedModel(energy.eval(), torch.zeros(0), torch.zeros(0), params, card)
        config = long_run.Config(num_steps=1000, num_chains=20)
        return long_run.evaluate(config, evaluation.Subject(model, index, {}, None))

    report = found(Pit(), 0.002, 0.0)  # all pixels black after 500 steps
    steps = [row["step"] for row in report.tables["long_run"] if row["chains_from"] == "data"]
    assert steps == [0, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    low = x.flatten(1).sum(1).quantile(0.01)
    start = shards.read_split(index, "test")[0][:20]
    medians = {step: (start - 0.002 * step).clamp(min=0).flatten(1).sum(1).quantile(0.5) for step in steps}
    assert report.metrics["data"]["last_step_within"] == max(step for step in steps if medians[step] >= low) < 464
    assert report.metrics["data"]["is_within_data"] == 0 and report.metrics["data"]["at_bounds"] == 1
    calm = found(Pit(), 1e-9, 0.0).metrics
    assert calm["data"]["is_within_data"] == 1 and calm["data"]["last_step_within"] == 1000
    assert calm["noise"]["is_within_data"] == 0 and calm["noise"]["last_step_within"] == 0  # noise is brighter than any digit
    assert set(report.figures) == {"data.png", "noise.png", "energy.png"}


def test_only_chains_of_the_same_class_are_compared(digits_data):
    found = metrics(digits_data, WellsOfClasses(), at(0.5), conditional=True)
    assert all(found[name]["rhat"] < 1.1 for name in ("noise", "replay", "both")), found
    assert found["both"]["ess_bulk"] > 1500


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
