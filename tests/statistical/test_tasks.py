"""Class-incremental learning: what a task may see, what stays of it, and how it is judged."""

import numpy as np
import pytest
import torch
from torch import nn

from ebm_dist import config, evaluation, models
from ebm_dist.data import shards
from ebm_dist.energies import mlp
from ebm_dist.errors import ConfigError, DataError
from ebm_dist.evaluation import continual
from ebm_dist.models.trained import TrainedModel
from ebm_dist.training import checkpoint
from tests import helpers
from tests.helpers import Silent, spawn, state_of

OBJECTIVE = {"name": "contrastive_divergence", "conditional": True, "energy_penalty": 0.1}
ENERGY = {"name": "mlp", "hidden": [40, 20], "gates": True}
TASKS = {
    "objective": OBJECTIVE,
    "energy": ENERGY,
    "train": {"num_steps": 20, "num_tasks": 5, "checkpoint_every": 3},
}


def test_a_task_sees_only_its_classes_and_begins_anew(digits_data):
    trainer = helpers.build(helpers.params(**TASKS), digits_data)
    for task in range(5):
        for step in range(4):
            before = {s: chains.position.clone() for s, chains in trainer.replay.items()}
            trainer.advance()
            trainer.step += 1
            for shard, chains in trainer.replay.items():
                assert set(trainer.batch(shard).y.tolist()) <= {2 * task, 2 * task + 1}
                assert set(chains.label.tolist()) <= {2 * task, 2 * task + 1}
                kept = (chains.position == before[shard]).flatten(1).all(dim=1)
                assert kept.any() == bool(step or not task)  # no chain of an earlier task is left
            (moments,) = {
                int(state["step"])
                for state in trainer.optimizers["energy"].state_dict()["state"].values()
            }
            assert moments == step + 1
    assert len(trainer.previous_task_averages) == 4


def test_an_anchor_draws_the_weights_back_to_those_of_the_previous_task(digits_data):
    """One step of gradient descent on the penalty alone."""
    rate, weight = 0.02, 3.0
    own = {"method": "sgd", "lr": rate, "decay": 0.0, "anchor_weight": weight}
    trainer = helpers.build(helpers.params(**TASKS, optimizer=own), digits_data)
    for _ in range(6):
        trainer.advance()
        trainer.step += 1
    energy = trainer.objective.players["energy"]
    (anchors,) = trainer.previous_task_averages
    before = {name: p.detach().clone() for name, p in energy.named_parameters()}
    trainer.update("energy", torch.zeros(sum(p.numel() for p in energy.parameters())))
    for name, p in energy.named_parameters():
        anchor = anchors[f"energy.{name}"]
        assert not torch.equal(anchor, before[name]) or not before[name].numel()
        torch.testing.assert_close(
            p.detach(), before[name] - rate * weight * (before[name] - anchor)
        )
    with pytest.raises(ConfigError, match=r"anchor_weight: holds the weights of the previous task"):
        helpers.params(optimizer={"anchor_weight": 1.0})


def test_with_gates_what_was_learnt_stays_to_the_bit_and_without_it_does_not(digits_data):
    for gates in (True, False):
        chosen = helpers.params(
            **TASKS | {"energy": ENERGY | {"gates": gates}, "optimizer": {"lr": 1e-2}}
        )
        trainer = helpers.build(chosen, digits_data)
        energy, seen = trainer.objective.players["energy"], []
        x, _ = shards.read_split(shards.read_index(digits_data), "test")
        for _ in range(20):
            trainer.advance()
            trainer.step += 1
            with torch.no_grad():
                seen.append(energy(x, torch.zeros(len(x), dtype=torch.long)))
        assert not torch.equal(seen[0], seen[3])
        assert (
            torch.equal(seen[4], seen[-1]) == gates
        )  # a task goes on from the averages of the last


@pytest.mark.slow
def test_stopped_anywhere_or_on_two_workers_the_tasks_end_with_the_same_bits(digits_data, tmp_path):
    helpers.build(helpers.params(**TASKS), digits_data).fit(tmp_path / "golden", Silent())
    golden = state_of(tmp_path / "golden")
    for stop_after in (1, 3, 4, 5, 8, 15, 16, 19):
        run = tmp_path / str(stop_after)
        helpers.build(helpers.params(**TASKS), digits_data).fit(run, Silent(stop_after))
        assert helpers.build(helpers.params(**TASKS), digits_data).fit(run, Silent()) == 20
        assert state_of(run) == golden
    spawn(2, tmp_path / "two", digits_data, helpers.values(**TASKS))
    assert state_of(tmp_path / "two") == golden


def test_a_model_keeps_the_energies_of_each_task(digits_data, tmp_path):
    chosen = helpers.params(**TASKS)
    trainer = helpers.build(chosen, digits_data)
    trainer.fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    trained = models.load(tmp_path / "model")
    assert len(trained.previous_tasks) == 4 and checkpoint.latest(tmp_path / "run")
    x = torch.rand(7, 1, 8, 8)
    for task, energy in enumerate(trained.previous_tasks):
        own = torch.full((7,), 2 * task)
        assert torch.equal(energy(x, own), trained.energy(x, own))  # gates: nothing is forgotten
        assert not torch.allclose(
            energy(x, own + 2), trained.energy(x, own + 2)
        )  # nor known beforehand
    (tmp_path / "model" / "energy-02.safetensors").unlink()
    with pytest.raises(DataError):
        models.load(tmp_path / "model")


class Table(nn.Module):
    """Right about some classes, and drawn to one label by a constant."""

    def __init__(self, means: torch.Tensor, offset: dict[int, float]) -> None:
        super().__init__()
        self.means, self.offset = means, torch.tensor([offset.get(k, 0.0) for k in range(10)])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return ((x - self.means[y]) ** 2).flatten(1).sum(1) + self.offset[y]


def test_accuracies_are_over_all_classes_seen_so_far(digits_data):
    index = shards.read_index(digits_data)
    x, y = shards.read_split(index, "train")
    means = torch.stack([x[y == k].mean(dim=0) for k in range(10)])
    sound, drawn = Table(means, {}), Table(means, {9: -1e6})
    card = {"shape": index.shape, "bounds": index.bounds, "num_classes": 10}
    trained = TrainedModel(
        drawn,
        torch.zeros(0),
        torch.zeros(0),
        helpers.params(**TASKS),
        card,
        (sound, sound, sound, sound),
    )
    report = continual.evaluate(continual.Config(), evaluation.Subject(trained, index, {}, None))
    found = report.metrics
    test_x, test_y = shards.read_split(index, "test")
    distance = torch.cdist(test_x.flatten(1), means.flatten(1))
    for after in range(4):
        for on in range(after + 1):
            mine = test_y // 2 == on
            expected = (
                (distance[mine][:, : 2 * after + 2].argmin(dim=1) == test_y[mine])
                .float()
                .mean()
                .item()
            )
            assert found["after_task"][str(after + 1)][str(on + 1)] == pytest.approx(expected)
    assert found["accuracy"] == pytest.approx((test_y == 9).float().mean().item())
    assert found["nearest_class_mean"] == pytest.approx(
        (distance.argmin(dim=1) == test_y).float().mean().item()
    )
    assert (
        found["accuracy_with_gaussians"] == found["accuracy"] and found["class_gaussians"] > 0.8
    )  # the constant outweighs them
    best = [max(found["after_task"][str(a)][str(on)] for a in range(on, 5)) for on in range(1, 5)]
    assert found["forgetting"] == pytest.approx(np.mean(best))
    assert found["after_task"]["5"]["5"] == pytest.approx(
        (test_y[test_y > 7] == 9).float().mean().item()
    )
    assert set(report.tables["accuracy"][0]) == {
        "after_task",
        "0 to 1",
        "2 to 3",
        "4 to 5",
        "6 to 7",
        "8 to 9",
    }
    assert report.figures["accuracy.png"]


def test_references_are_the_class_means_and_gaussians(digits_data):
    x, y = shards.read_split(shards.read_index(digits_data), "train")
    distances, gaussians = continual.references(x, y, x[:20], 10, 0.05)
    for k in (0, 7):
        own = x[y == k].flatten(1).double()
        covariance = torch.cov(own.T, correction=0) + 0.05 * torch.eye(64)
        expected = torch.distributions.MultivariateNormal(own.mean(dim=0), covariance).log_prob(
            x[:20].flatten(1).double()
        )
        torch.testing.assert_close(gaussians[:, k], -expected - 32 * np.log(2 * np.pi))
        torch.testing.assert_close(
            distances[:, k],
            ((x[:20] - own.float().mean(0).view(1, 8, 8)) ** 2).flatten(1).sum(1).double(),
            rtol=1e-4,
            atol=1e-5,
        )


def test_what_cannot_be_is_refused(digits_data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train\.num_tasks: 10 classes cannot be divided evenly among 3 tasks"
    ):
        helpers.build(
            helpers.params(objective=OBJECTIVE, train={"num_steps": 12, "num_tasks": 3}),
            digits_data,
        )
    with pytest.raises(
        ConfigError,
        match=r"train\.num_tasks: train\.num_steps = 12 cannot be divided evenly among 5 tasks",
    ):
        helpers.params(objective=OBJECTIVE, train={"num_steps": 12, "num_tasks": 5})
    with pytest.raises(ConfigError, match=r"energy\.gates: selects units by class"):
        helpers.params(energy=ENERGY)
    with pytest.raises(
        ConfigError, match=r"energy\.hidden: 16 units cannot be divided among 10 classes"
    ):
        mlp.build(mlp.Config(hidden=(20, 16), gates=True), shape=(4,), num_classes=10)
    chosen = helpers.params(objective=OBJECTIVE)
    subject = evaluation.Subject(
        TrainedModel(nn.Identity(), torch.zeros(0), torch.zeros(0), chosen, {}),
        shards.read_index(digits_data),
        {},
        None,
    )
    with pytest.raises(
        ConfigError, match=r"evaluation\.continual: needs a model that learnt classes in tasks"
    ):
        continual.evaluate(
            config.from_values(helpers.values(evaluation={"continual": {}}), tmp_path).evaluation[
                "continual"
            ],
            subject,
        )
