"""Energy-based learning: each loss against its formula, its gradient, and what it learns."""

import math

import pytest
import torch

from ebm_dist import evaluation
from ebm_dist.data import shards
from ebm_dist.evaluation import classification
from ebm_dist.models.trained import load
from ebm_dist.objectives.discriminative import LOSSES
from tests import helpers

MARGIN, T = 1.5, 0.7
LN = math.log


def by_hand(name, energies, y):
    """The loss of one sample, from a list of energies."""
    right = energies[y]
    wrong = min(e for k, e in enumerate(energies) if k != y)
    total = sum(math.exp(-e / T) for e in energies)
    return {
        "energy": right,
        "perceptron": right - min(energies),
        "hinge": max(0, MARGIN + right - wrong),
        "log": LN(1 + math.exp(right - wrong)),
        "lvq2": min(MARGIN, max(0, right - wrong)),
        "mce": 1 / (1 + math.exp(wrong - right)),
        "square_square": right**2 + max(0, MARGIN - wrong) ** 2,
        "square_exponential": right**2 + MARGIN * math.exp(-wrong),
        "nll": right + T * LN(total),
        "mee": 1 - math.exp(-right / T) / total,
    }[name]


def trainer_of(name, data, **more):
    objective = {"name": "discriminative", "loss": name, "margin": MARGIN, "label_temperature": T}
    return helpers.build(helpers.params(objective=objective, **more), data)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("heads", [False, True])
def test_a_turn_is_the_mean_of_the_formula(digits_data, name, heads):
    trainer = trainer_of(name, digits_data, energy={"heads": heads})
    batch, energy = trainer.batch(0), trainer.objective.players["energy"]
    with torch.no_grad():
        for parameter in energy.last.parameters():
            parameter.mul_(20)  # so that some are right and some are wrong
        columns = [energy(batch.x, torch.full_like(batch.y, k)) for k in range(10)]
    rows, labels = torch.stack(columns, dim=1).double().tolist(), batch.y.tolist()
    (turn,) = trainer.objective.turns(batch, trainer.context(0))
    expected = [by_hand(name, row, y) for row, y in zip(rows, labels, strict=True)]
    assert turn.loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    hits = [min(range(10), key=row.__getitem__) == y for row, y in zip(rows, labels, strict=True)]
    assert turn.metrics["label_accuracy"].item() == pytest.approx(sum(hits) / len(hits))


MARGIN_LOSSES = [name for name in LOSSES if name not in ("energy", "perceptron", "hinge")]


@pytest.mark.parametrize(
    "name", ["hinge", *(pytest.param(name, marks=pytest.mark.slow) for name in MARGIN_LOSSES)]
)
def test_losses_with_a_margin_learn_the_labels(digits_data, name):
    trainer = trainer_of(
        name,
        digits_data,
        energy={"hidden": [64, 64], "heads": True},
        optimizer={"lr": 3e-3},
        train={"num_steps": 400, "batch_size": 64},
        replay={"capacity": 64},
    )
    for _ in range(400):
        row = trainer.mean_over_shards(trainer.advance())
        trainer.step += 1
    assert row["label_accuracy"] > (0.6 if name in ("lvq2", "mce", "mee") else 0.9), row


def test_the_suite_compares_with_baselines_that_have_all_labels(digits_data, tmp_path):
    chosen = helpers.params(
        objective={"name": "discriminative"},
        evaluation={"classification": {"supervised_steps": 300}},
    )
    trainer = helpers.build(chosen, digits_data)
    for _ in range(chosen.train.num_steps):
        trainer.advance()
        trainer.step += 1
    trainer.save(tmp_path / "run")
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    subject = evaluation.Subject(load(tmp_path / "model"), shards.read_index(digits_data), {}, None)
    scores = classification.evaluate(chosen.evaluation["classification"], subject).metrics["scores"]
    assert scores.keys() == {"model", "supervised", "nearest", "chance"}
    assert scores["nearest"]["accuracy"] > 0.95
    assert scores["supervised"]["accuracy"] > 0.8 > scores["chance"]["accuracy"] == 0.1
