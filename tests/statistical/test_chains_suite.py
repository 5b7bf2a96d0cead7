"""The suite of chains: it tells a sampler that mixes from one that does not, and a chain's start from its end."""

import pytest
import torch
from torch import nn

from ebm_dist import evaluation, shards
from ebm_dist.errors import ConfigError
from ebm_dist.evaluation import chains
from ebm_dist.model import TrainedModel
from tests import helpers


class Wells(nn.Module):
    """``|x|^2 / 2`` around the middle of the range, or two narrow wells to the left and the right of it."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1) - 0.5
        if self.width == 0:
            return 50 * (flat**2).sum(1)
        away = torch.stack([((flat - side) ** 2).sum(1) for side in (-0.3, 0.3)])
        return -torch.logsumexp(-away / self.width**2, dim=0)


def report(digits_data, width: float, chains_at: torch.Tensor, **settings) -> evaluation.Report:
    params = helpers.params(sampler={"name": "langevin", "step_size": 2e-3, "noise_scale": 0.0632}, evaluation={"chains": settings})
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    model = TrainedModel(Wells(width).eval(), chains_at, torch.zeros(len(chains_at), dtype=torch.long), params, card)
    return chains.evaluate(params.evaluation["chains"], evaluation.Subject(model, index, {}, None))


def test_one_well_mixes_from_everywhere(digits_data):
    middle = torch.full((40, 1, 8, 8), 0.5)
    found = report(digits_data, 0.0, middle, num_chains=40, num_draws=400, thin=4).metrics
    assert all(found[name]["rhat"] < 1.02 for name in ("noise", "replay", "both")), found
    assert found["both"]["ess_bulk"] > 1500 and found["noise"]["num_not_finite"] == 0


def test_two_wells_do_not_and_starts_on_one_side_are_found_only_beside_the_others(digits_data):
    """The worst that R-hat cannot see: all replayed chains in one of two wells agree with each other."""
    left = torch.full((40, 1, 8, 8), 0.2)
    found = report(digits_data, 0.15, left, num_chains=40, num_draws=200, thin=4).metrics
    assert found["replay"]["rhat"] < 1.03, found
    assert found["both"]["rhat"] > 1.15 and found["noise"]["rhat"] > 1.15, found


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
