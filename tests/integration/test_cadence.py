"""What may be changed between two sessions of a run, and longer trainings that go on from shorter ones."""

import pytest

from ebm_dist.config import plugins
from ebm_dist.data import shards
from ebm_dist.errors import CheckpointError
from ebm_dist.runs import cluster, continuation, lineage
from ebm_dist.training import checkpoint
from tests import helpers
from tests.helpers import Silent, state_of

OTHER_CADENCE = {
    "log_every": 1,
    "checkpoint_every": 3,
    "validate_every": 6,
    "max_energy": 1e6,
    "max_rollbacks": 4,
    "cache": "stream",
}
CONSTANT = {"lr": 1e-3, "decay": 0.0}


def without_history(state):
    return {name: content for name, content in state.items() if name != "history.json"}


def test_other_cadence_is_the_same_run_and_changes_no_bit(digits_data, tmp_path):
    data_digest = shards.read_index(digits_data).digest
    plain, other = helpers.params(), helpers.params(train=OTHER_CADENCE)
    assert lineage.run_digest(plain, data_digest) == lineage.run_digest(other, data_digest)
    helpers.build(plain, digits_data).fit(tmp_path / "golden", Silent())
    assert helpers.build(other, digits_data).fit(tmp_path / "run", Silent(5)) == 5
    reporter = Silent()
    assert helpers.build(plain, digits_data).fit(tmp_path / "run", reporter) == 12
    assert reporter.starts == [5]
    golden, state = state_of(tmp_path / "golden"), state_of(tmp_path / "run")
    assert without_history(state) == without_history(golden)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("train", {"num_steps": 24}), ("train", {"batch_size": 32}), ("train", {"num_shards": 2}),
        ("train", {"num_tasks": 2}), ("train", {"num_threads": 2}), ("train", {"reduce": "ddp"}),
        ("train", {"rollback_lr": 0.1}), ("optimizer", {"lr": 5e-4}), ("replay", {"capacity": 128}),
    ],
)  # fmt: skip
def test_what_a_step_computes_with_names_another_run(section, change):
    digest = lineage.run_digest(helpers.params(), "data")
    assert lineage.run_digest(helpers.params(**{section: change}), "data") != digest


def fit(runs, data, num_steps, optimizer=CONSTANT):
    """As stage train does: the folder of the run, the run that it went on from, and its starts."""
    params = helpers.params(train={"num_steps": num_steps}, optimizer=optimizer)
    data_digest = shards.read_index(data).digest
    digest = lineage.run_digest(params, data_digest)
    run, reporter = runs / digest[:16], Silent()
    shorter = continuation.start(runs, run, digest, params, data_digest)
    assert helpers.build(params, data, digest=digest).fit(run, reporter) == num_steps
    assert cluster.is_finished(run, digest, params.train)
    return run, shorter, reporter.starts


def test_a_longer_training_goes_on_from_the_longest_shorter_one_to_the_same_bits(
    digits_data, tmp_path
):
    golden, shorter, starts = fit(tmp_path / "undisturbed", digits_data, 16)
    assert shorter is None and starts == [0]
    runs = tmp_path / "runs"
    first, _, _ = fit(runs, digits_data, 4)
    second, shorter, starts = fit(runs, digits_data, 8)
    assert shorter == first and starts == [4]
    third, shorter, starts = fit(runs, digits_data, 16)
    assert shorter == second and starts == [8]
    assert state_of(third) == state_of(golden)
    assert {checkpoint.verify(checkpoint.latest(run)) for run in (first, second)} == {4, 8}
    _, shorter, starts = fit(runs, digits_data, 16)  # again: nothing to do
    assert shorter is None and starts == [16]
    sixth, shorter, starts = fit(runs, digits_data, 6)  # shorter than some: from those before it
    assert shorter in (first, second) and starts == [4]  # both have a checkpoint of step 4
    assert state_of(sixth) == state_of(fit(tmp_path / "six", digits_data, 6)[0])


@pytest.mark.parametrize("optimizer", [{"decay": 0.5}, {"decay": 0.0, "warmup": 0.1}])
def test_where_the_rate_follows_the_length_a_longer_training_starts_at_0(
    digits_data, tmp_path, optimizer
):
    fit(tmp_path, digits_data, 4, optimizer)
    _, shorter, starts = fit(tmp_path, digits_data, 8, optimizer)
    assert shorter is None and starts == [0]


def test_a_damaged_shorter_run_is_one_message(digits_data, tmp_path):
    run, _, _ = fit(tmp_path, digits_data, 4)
    (run / "step-00000004/weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: differs from the manifest"):
        fit(tmp_path, digits_data, 8)


def test_a_run_that_rolled_back_is_not_taken_for_one_that_did_not(digits_data, tmp_path):
    """max_rollbacks is no part of the digest: a run from the beginning would end as diverged."""
    allowing = helpers.params(train={"max_rollbacks": 2})
    trainer = helpers.build(allowing, digits_data)
    trainer.rollbacks = 2
    trainer.fit(tmp_path, Silent())
    assert cluster.is_finished(tmp_path, "digest", allowing.train)
    with pytest.raises(CheckpointError, match=r"rolled back 2 times.*max_rollbacks = 0; set"):
        cluster.is_finished(tmp_path, "digest", helpers.params().train)


OBJECTIVES = {
    "meg": [{"generator": {"name": "mlp"}, "num_energy_steps": 1},
            {"generator": {"name": "mlp"}, "num_energy_steps": 1, "final_mi_weight": 0.1}],
    "noise_contrastive": [{"generator": {"name": "gaussian"}, "pretraining": 1}],
    "energy_matching": [{"warm_up": 0.5, "num_langevin": 2}, {"warm_up": 1.0}],
    "level_classification": [{"generator": {"name": "gaussian"}, "pretraining": 1,
                              "sigmas": [0.0, 0.3]}],
    "semi_supervised": [{"unsupervised": {"name": "contrastive_divergence"}, **weights}
                        for weights in ({}, {"consistency_weight": 1.0, "label_ramp": 1.0})],
    "composite_likelihood": [{"joint": {"name": "contrastive_divergence"}}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [(n, s) for n in plugins("ebm_dist.objectives") for s in OBJECTIVES.get(n, [{}])],
)
def test_an_objective_says_whether_its_steps_depend_on_their_number(digits_data, name, settings):
    energy = {"energy": helpers.ENERGY_FOR[name]} if name in helpers.ENERGY_FOR else {}
    if name == "recovery_likelihood":  # of temperature 1
        energy["sampler"] = {"name": "langevin", "step_size": 0.02, "noise_scale": 0.2}
    weights, follows = [], None
    for num_steps in (2, 8):
        params = helpers.params(
            objective={"name": name, **settings}, optimizer=CONSTANT,
            train={"num_steps": num_steps}, **energy,
        )  # fmt: skip
        trainer = helpers.build(params, digits_data)
        trainer.labelled = trainer.batch(0) if name == "semi_supervised" else None
        for trainer.step in range(2):
            trainer.advance()
        weights.append([p.clone() for net in trainer.averages.values() for p in net.parameters()])
        follows = params.objective.follows_length
    is_equal = all(bool((a == b).all()) for a, b in zip(*weights, strict=True))
    assert is_equal == (not follows)
    assert (lineage.open_ended_digest(params, "data") is None) == follows
