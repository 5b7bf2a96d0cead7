"""The suite of likelihoods is not taken in by a mode that the data's chains never see."""

import json

import pytest
import torch

from ebm_dist import evaluation
from ebm_dist.data import shards
from ebm_dist.energies import rbm
from ebm_dist.errors import ConfigError, DivergedError
from ebm_dist.evaluation import likelihood
from ebm_dist.metrics.ais import exact_log_z
from ebm_dist.models.trained import TrainedModel
from tests import helpers


def planted(hidden_bias: float) -> rbm.RBM:
    """64 x 10; all units off is one mode. All on is another if the hidden bias is high enough."""
    machine = rbm.RBM(rbm.Config(num_hidden=10, centred=False), 64, 0)
    with torch.no_grad():
        machine.weight.fill_(0.6)
        machine.visible_bias.fill_(-3.0)
        machine.hidden_bias.fill_(hidden_bias)
    return machine.requires_grad_(False)


def metrics(machine: rbm.RBM, digits_data, **more) -> dict:
    params = helpers.params(
        energy={"name": "rbm", "num_hidden": 10},
        sampler={"name": "gibbs"},
        objective={"binarise": True, "data_noise": 0.0},
        evaluation={
            "likelihood": {"num_betas": 600, "num_chains": 60, "burn_in": 50, "max_exact_hidden": 1}
            | more
        },
    )
    index = shards.read_index(digits_data)
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": index.num_classes}
    model = TrainedModel(
        machine, torch.zeros(64, 1, 8, 8), torch.zeros(64, dtype=torch.long), params, card
    )
    return likelihood.evaluate(
        params.evaluation["likelihood"], evaluation.Subject(model, index, {}, None)
    ).metrics


def test_a_heavy_mode_far_from_the_chains_is_found(digits_data):
    machine = planted(-14.0)
    exact = exact_log_z(machine.weights())
    found = metrics(machine, digits_data, num_replicas=1)
    assert found["reverse_ais"]["log_z"] < exact - 10, "the persistent chains know nothing of it"
    assert found["reverse_ais"]["round_trips"] == found["reverse_ais"]["barrier"] == 0
    assert found["worst"]["log_z"] == pytest.approx(exact, abs=0.5), found
    assert (
        found["states"]["log_z"] <= exact
        and found["states"]["log_z"] > found["reverse_ais"]["log_z"]
    )
    assert found["worst"]["test"] == min(
        found[name]["test"] for name in ("ais", "ais_uniform", "reverse_ais", "states")
    )


def test_replayed_chains_that_exchange_over_the_path_forget_their_start(digits_data):
    """So reverse AIS is above log Z, as it should; it was 40 nats below."""
    machine = planted(-14.0)
    found = metrics(machine, digits_data, num_replicas=7, burn_in=800, num_chains=30)
    assert 0 < found["reverse_ais"]["log_z"] - exact_log_z(machine.weights()) < 4
    assert found["reverse_ais"]["round_trips"] > 5


def test_without_such_a_mode_all_agree(digits_data):
    machine = planted(-30.0)
    exact, found = exact_log_z(machine.weights()), metrics(machine, digits_data)
    for name in ("ais", "ais_uniform", "reverse_ais", "worst"):
        assert found[name]["log_z"] == pytest.approx(exact, abs=0.3), name
    assert found["states"]["log_z"] < exact
    worst = found["worst"]
    by = max((found[n] for n in ("ais", "ais_uniform", "reverse_ais")), key=lambda e: e["log_z"])
    assert worst["test"] - worst["test_low"] == pytest.approx(by["high"] - by["log_z"])
    assert worst["test_high"] - worst["test"] == pytest.approx(by["log_z"] - by["low"])


def test_an_interval_without_a_lower_end_leaves_it_out(digits_data):
    """A deep narrow mode: a few of the chains have nearly all the weight."""
    found = metrics(planted(-14.0), digits_data)
    assert "low" not in found["ais"] and "ais_three_sigma" not in found
    assert found["ais"]["high"] > found["ais"]["log_z"]
    json.dumps(found, allow_nan=False)


def test_one_chain_and_weights_that_are_not_finite_are_refused(digits_data):
    with pytest.raises(ConfigError, match=r"likelihood\.num_chains.*at least 2"):
        helpers.params(
            energy={"name": "rbm"},
            sampler={"name": "gibbs"},
            objective={"binarise": True, "data_noise": 0.0},
            evaluation={"likelihood": {"num_chains": 1}},
        )
    machine = planted(-14.0)
    machine.weight[3, 4] = torch.nan
    with pytest.raises(DivergedError, match="likelihood: weight: 1 of 640 values are NaN"):
        metrics(machine, digits_data)
