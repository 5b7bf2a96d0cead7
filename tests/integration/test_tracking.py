"""Runs in a real MLflow on SQLite: params, metrics, data set, and what a rollback discards."""

import contextlib
import json
import time

import mlflow as mlflow_module
import pytest
from PIL import Image

from ebm_dist.errors import RegistryError
from ebm_dist.files import flat
from ebm_dist.runs import record, tracking
from ebm_dist.search.mlflow import Family
from ebm_dist.search.trials import Trial, TrialStore
from tests import helpers

DATA = tracking.Data("digits", "0123456789abcdef" * 4, "Optical Recognition of Handwritten Digits")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)  # for artifacts
        yield tracking.client()


def params_of(experiment, **sections):
    return helpers.params(tracking={"experiment": experiment, "poll_s": 0.2}, **sections)


def run_of(mlflow, params, digest="digest"):
    return tracking.run_of(mlflow, params, digest, "name", DATA)


def write_record(run, rows, events):
    """Write rows ``(step, energy_gap)`` and events ``(step, rollbacks)``."""
    run.mkdir(exist_ok=True)
    (run / record.METRICS).write_text(
        "".join(
            json.dumps({"step": step, "energy_gap": gap, "seconds": step, "time": 1e9 + step})
            + "\n"
            for step, gap in rows
        )
    )
    (run / record.EVENTS).write_text(
        "".join(
            json.dumps({"event": "start", "step": step, "rollbacks": count, "time": 1e9}) + "\n"
            for step, count in events
        )
    )


class Interrupted:
    """A client that loses its connection at the n-th call that logs params."""

    def __init__(self, client, calls):
        self.client, self.calls = client, calls

    def __getattr__(self, name):
        if name in ("log_batch", "log_param"):
            self.calls -= 1
            if self.calls < 0:
                raise ConnectionError("server restarted")
        return getattr(self.client, name)


@pytest.mark.parametrize("calls", [0, 5])
def test_params_that_an_interrupted_call_has_not_logged_are_logged_at_the_next_look(mlflow, calls):
    params = params_of(f"interrupted-{calls}")
    with contextlib.suppress(ConnectionError):
        run_of(Interrupted(mlflow, calls), params)
    logged = mlflow.get_run(run_of(mlflow, params)).data.params
    values = flat({key: value for key, value in params.as_dict().items() if key != "tune"})
    assert logged.keys() == values.keys() | {"sampler.temperature"} and len(logged) > 60
    assert logged["replay.capacity"] == "64"


def test_params_that_changed_are_in_a_tag_with_their_present_values(mlflow):
    run_id = run_of(mlflow, params_of("changed"))
    again = run_of(mlflow, params_of("changed", features={"num_steps": 7}))
    run = mlflow.get_run(run_id)
    assert again == run_id and run.data.params["features.num_steps"] != "7"
    assert json.loads(run.data.tags[tracking.CHANGED_TAG]) == {"features.num_steps": "7"}
    run_of(mlflow, params_of("changed"))
    assert json.loads(mlflow.get_run(run_id).data.tags[tracking.CHANGED_TAG]) == {}


def test_the_data_set_is_an_input_of_the_run(mlflow):
    run_id = run_of(mlflow, params_of("data"))
    run_of(mlflow, params_of("data"))
    (data_input,) = mlflow.get_run(run_id).inputs.dataset_inputs
    assert (data_input.dataset.name, data_input.dataset.digest) == ("digits", DATA.digest[:36])
    assert DATA.source in data_input.dataset.source
    assert {tag.key: tag.value for tag in data_input.tags} == {
        "mlflow.data.context": "training",
        "ebm.data_digest": DATA.digest,
    }
    source = mlflow_module.data.get_source(data_input)
    assert DATA.source in source.to_dict()["tags"].values()


def test_a_deleted_experiment_is_named_as_deleted_with_the_way_to_restore_it(
    mlflow, tmp_path, caplog
):
    params = params_of("deleted")
    run_of(mlflow, params)
    experiment = mlflow.get_experiment_by_name("deleted")
    mlflow.delete_experiment(experiment.experiment_id)
    began = time.monotonic()
    with pytest.raises(RegistryError, match=r"'deleted' at sqlite.* is deleted") as refused:
        tracking.open_run(params, "digest", "name", DATA, tmp_path)
    assert time.monotonic() - began < 2  # not tried again
    assert f"mlflow experiments restore -x {experiment.experiment_id}" in refused.value.fix
    with tracking.sync_while_running(params, "digest", "name", DATA, tmp_path):
        pass
    assert "refuses" in caplog.text and "is deleted" in caplog.text and "away" not in caplog.text
    mlflow.restore_experiment(experiment.experiment_id)
    assert tracking.open_run(params, "digest", "name", DATA, tmp_path)[1]


def test_what_mlflow_refuses_is_not_called_unreachable(mlflow, tmp_path):
    params = params_of("x" * 600)  # MLflow's limit is 500
    with pytest.raises(RegistryError, match="refused") as refused:
        tracking.open_run(params, "digest", "name", DATA, tmp_path)
    assert "cannot be reached" not in str(refused.value)


def history(mlflow, run_id):
    return [(m.step, m.value) for m in mlflow.get_metric_history(run_id, "train/energy_gap")]


def test_a_run_of_version_0_1_gets_its_metrics_by_the_present_names(mlflow, tmp_path):
    params, run = params_of("earlier"), tmp_path / "run"
    write_record(run, [(10, 0.1), (20, 0.2)], [(0, 0)])
    run_id = run_of(mlflow, params)
    mlflow.log_metric(run_id, "energy_gap", 0.1, step=10)
    mlflow.set_tag(run_id, "ebm.synced_step", "10")
    for _ in range(2):
        assert tracking.sync_run(mlflow, params, "digest", "name", DATA, run) == run_id
    assert history(mlflow, run_id) == [(10, 0.1), (20, 0.2)]
    assert mlflow.get_run(run_id).data.metrics["energy_gap"] == 0.1  # MLflow deletes no metrics


def test_the_chains_over_the_training_are_one_picture(mlflow, tmp_path):
    params, run = params_of("strip"), tmp_path / "run"
    write_record(run, [(10, 0.1)], [(0, 0)])
    (run / "pictures").mkdir()
    run_id, heights = run_of(mlflow, params), []
    for step in (0, 10, 20):
        Image.new("RGB", (13, 8), "white").save(run / f"pictures/{step:08d}.png")
        tracking.sync(mlflow, run_id, run)
        (artifact,) = mlflow.list_artifacts(run_id)
        assert artifact.path == "chains.png"
        path = mlflow_module.artifacts.download_artifacts(f"runs:/{run_id}/chains.png")
        heights.append(Image.open(path).height)
    assert heights[0] < heights[1] < heights[2]  # a row per checkpoint


def test_after_a_rollback_the_run_has_only_the_branch_that_was_kept(mlflow, tmp_path):
    params, run = params_of("rollback"), tmp_path / "run"

    def sync():
        return tracking.sync_run(mlflow, params, "digest", "name", DATA, run)

    kept, diverged = [(10, 0.1), (20, 0.2)], [(30, 3e5), (40, 9e9)]
    write_record(run, kept + diverged, [(0, 0)])
    first = sync()
    assert history(mlflow, first) == kept + diverged
    new = [(30, 0.3), (40, 0.4), (50, 0.5)]
    write_record(run, kept + new[:1], [(0, 0), (20, 1)])
    second = sync()
    write_record(run, kept + new, [(0, 0), (20, 1), (30, 1)])  # a restart, not a rollback
    assert sync() == second != first
    assert history(mlflow, second) == kept + new
    old, present = mlflow.get_run(first), mlflow.get_run(second)
    assert old.info.status == "FAILED" and tracking.RUN_TAG not in old.data.tags
    assert old.data.tags["mlflow.parentRunId"] == second
    assert old.data.tags["ebm.kept_up_to_step"] == "20"
    assert present.data.metrics["train/energy_gap"] == 0.5 and present.info.status == "RUNNING"
    # a rollback to a step that is not logged yet discards nothing
    write_record(run, [*kept, *new, (60, 0.6)], [(0, 0), (20, 1), (50, 2)])
    assert sync() == second and history(mlflow, second)[-1] == (60, 0.6)


def test_a_run_that_was_retired_by_an_interrupted_call_is_replaced(mlflow, tmp_path):
    params, run = params_of("retired"), tmp_path / "run"
    write_record(run, [(10, 0.1), (20, 9e9)], [(0, 0)])
    with tracking.sync_while_running(params, "digest", "name", DATA, run):
        time.sleep(0.5)
        experiment = mlflow.get_experiment_by_name("retired").experiment_id
        (first,) = mlflow.search_runs([experiment])
        write_record(run, [(10, 0.1)], [(0, 0), (10, 1)])
        mlflow.set_tag(first.info.run_id, tracking.DIVERGED_TAG, "digest")
        mlflow.delete_tag(first.info.run_id, tracking.RUN_TAG)
    second = run_of(mlflow, params)
    assert second != first.info.run_id and history(mlflow, second) == [(10, 0.1)]


@pytest.mark.parametrize("is_on", [True, False])
def test_system_metrics_are_logged_unless_switched_off(mlflow, tmp_path, is_on):
    params = helpers.params(
        tracking={"experiment": f"system-{is_on}", "poll_s": 0.2, "system_metrics": is_on}
    )
    run = tmp_path / "run"
    write_record(run, [(10, 0.1)], [(0, 0)])
    with tracking.sync_while_running(params, "digest", "name", DATA, run):
        time.sleep(1.0)
    metrics = mlflow.get_run(run_of(mlflow, params)).data.metrics
    names = {name for name in metrics if name.startswith("system/")}
    assert ("system/cpu_utilization_percentage" in names) == is_on
    assert ("system/system_memory_usage_percentage" in names) == is_on
    assert metrics["train/energy_gap"] == 0.1
    assert all(name.startswith(("train/", "system/")) for name in metrics)


def test_a_run_that_is_trained_again_is_running(mlflow, tmp_path):
    params, run = params_of("again"), tmp_path / "run"
    write_record(run, [(10, 0.1)], [(0, 0)])
    run_id = run_of(mlflow, params)
    mlflow.set_terminated(run_id)
    with tracking.sync_while_running(params, "digest", "name", DATA, run):
        pass
    assert mlflow.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("ood.uniform.-E (before training)", "ood.uniform.-E before training"),
        ("anomaly.energy + entropy.auroc", "anomaly.energy and entropy.auroc"),
        ("a=b@c", "a_b_c"),
    ],
)
def test_names_of_metrics_read_as_those_of_the_reports(mlflow, key, name):
    assert tracking.mlflow_name(key) == name
    mlflow.log_metric(run_of(mlflow, params_of("names")), name, 1.0)  # MLflow accepts it


def test_scores_of_trials_have_the_time_at_which_they_were_recorded(mlflow, tmp_path):
    params, began = params_of("search"), time.time()
    store = TrialStore(tmp_path, "search", [Trial(0, {"sampler.step_size": 0.1}, 0, 20)])
    for step, score in ((10, 9.0), (20, 5.0)):
        store.add(store.all[0], {"step": step, "fid_clf": score, "digest": "a"})
    store.all[0].state = "finished"
    for _ in range(2):  # a second look logs nothing twice
        Family(params, "search-digest", "search", {}).bring(mlflow, {"search": store.all})
    experiment = mlflow.get_experiment_by_name("search").experiment_id
    (child,) = mlflow.search_runs([experiment], "tags.`ebm.kind` = 'trial'")
    history = mlflow.get_metric_history(child.info.run_id, "search/fid_clf")
    assert [(m.step, m.value) for m in history] == [(10, 9.0), (20, 5.0)]
    assert all(m.timestamp / 1000 >= began - 1 for m in history)
    assert child.data.metrics["search/fid_clf"] == 5.0


def test_scores_of_validated_checkpoints_are_logged_once(mlflow, tmp_path):
    run_id, run = run_of(mlflow, params_of("validated"), "validated"), tmp_path / "run"
    write_record(run, [(10, 1.0), (20, 0.5)], [(0, 0)])
    (run / record.VALIDATION).mkdir()
    for step, fid in ((20, 7.0), (10, 9.0)):
        row = {"step": step, "time": 1e9 + step, "fid_clf": fid}
        (run / record.VALIDATION / f"{step:08d}.json").write_text(json.dumps(row))
        for _ in range(2):
            tracking.sync(mlflow, run_id, run)
    logged = mlflow.get_metric_history(run_id, "validation/fid_clf")
    assert sorted((m.step, m.value) for m in logged) == [(10, 9.0), (20, 7.0)]
    assert [row["step"] for row in record.validations(run)] == [10, 20]
