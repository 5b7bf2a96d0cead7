"""An RBM through the same trainer, replay buffer and model folder as any other energy."""

import pytest
import torch

from ebm_dist import evaluation, models
from ebm_dist.data import shards
from ebm_dist.evaluation import likelihood
from tests import helpers

RBM = {
    "energy": {"name": "rbm", "num_hidden": 12},
    "sampler": {"name": "gibbs", "num_steps": 1},
    "objective": {"name": "contrastive_divergence", "energy_penalty": 0.0, "binarise": True},
    "replay": {"capacity": 64, "reinit_prob": 0.0},
    "optimizer": {"method": "sgd", "lr": 0.3, "decay": 1.0, "ema_decay": 0.99},
    "train": {
        "num_steps": 1000,
        "batch_size": 64,
        "num_shards": 4,
        "log_every": 100,
        "checkpoint_every": 1000,
    },
}


def trained(folder, data, **changes):
    chosen = helpers.params(
        **(RBM | {name: RBM[name] | change for name, change in changes.items()})
    )
    helpers.build(chosen, data).fit(folder / "run", helpers.Silent())
    helpers.export(folder / "run", folder / "model", chosen, data)
    return models.load(folder / "model")


@pytest.mark.slow
def test_persistent_contrastive_divergence_learns_and_its_likelihood_is_estimated_rightly(
    digits_data, tmp_path
):
    subject = evaluation.Subject(
        trained(tmp_path, digits_data), shards.read_index(digits_data), {}, None
    )
    chosen = likelihood.Config(num_betas=500, num_chains=60, burn_in=200)
    report = likelihood.evaluate(chosen, subject)
    exact, ais, back = (report.metrics[name] for name in ("exact", "ais", "reverse_ais"))
    assert exact["test"] > report.metrics["independent_pixels"] + 3 > report.metrics["uniform"] + 3
    assert exact["test"] <= exact["train"] + 1
    for estimate in (ais, back):
        assert estimate["low"] - 0.05 <= exact["log_z"] <= estimate["high"] + 0.05
        assert estimate["test"] == pytest.approx(exact["test"] + exact["log_z"] - estimate["log_z"])
    assert report.metrics["ais_gap"] == pytest.approx(abs(ais["log_z"] - exact["log_z"]))
    assert set(report.figures) == {"filters.png", "fantasy.png", "noise.png"}
    assert report == likelihood.evaluate(chosen, subject)


def test_it_starts_at_the_data_s_mean_whatever_the_number_of_logical_shards(digits_data):
    mean = (
        shards.read_split(shards.read_index(digits_data), "train")[0]
        .mean(dim=0)
        .flatten()
        .clamp(0.01, 0.99)
    )
    for num_shards in (2, 8):
        started = helpers.build(
            helpers.params(**RBM | {"train": RBM["train"] | {"num_shards": num_shards}}),
            digits_data,
        )
        machine = started.objective.players["energy"]
        torch.testing.assert_close(machine.visible_offset, mean)
        torch.testing.assert_close(
            machine.weights().visible_bias.detach().sigmoid(), mean, rtol=0.05, atol=0.02
        )


@pytest.mark.parametrize("start", ["replay", "data"])
def test_the_data_are_binary_and_so_are_the_chains(digits_data, start):
    trainer = helpers.build(
        helpers.params(**RBM | {"objective": RBM["objective"] | {"start": start}}), digits_data
    )
    seen = []
    energy = trainer.objective.players["energy"]
    energy.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    trainer.advance()
    assert seen and all(((x == 0) | (x == 1)).all() for x in seen)
    grey = torch.cat([trainer.data[s].batch(0)[0] for s in trainer.data])
    drawn = torch.cat([x[: len(grey) // 4] for x in seen if len(x) == len(grey) // 2])
    assert abs(drawn.mean() - grey.mean()) < 0.02


def test_sgd_resumes_to_the_same_bits(digits_data, tmp_path):
    settings = {"train": {"num_steps": 12, "checkpoint_every": 4}, "optimizer": {"momentum": 0.5}}
    trained(tmp_path / "whole", digits_data, **settings)
    chosen = helpers.params(
        **(RBM | {name: RBM[name] | change for name, change in settings.items()})
    )
    helpers.build(chosen, digits_data).fit(tmp_path / "run", helpers.Silent(5))
    helpers.build(chosen, digits_data).fit(tmp_path / "run", helpers.Silent())
    assert helpers.state_of(tmp_path / "run") == helpers.state_of(tmp_path / "whole/run")
