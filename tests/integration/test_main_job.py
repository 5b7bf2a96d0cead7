"""The main job for real: dvc, Ray Train, MLflow, in a copy of the project with small settings."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from ruamel.yaml import YAML

from ebm_dist import models
from ebm_dist.data import shards
from ebm_dist.runs.record import EVENTS, METRICS, read_lines
from ebm_dist.training import checkpoint
from infra.local import Stack
from tests import pages
from tests.helpers import ROOT, SMALL_PIPELINE, copy_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NUM_STEPS = SMALL_PIPELINE["train"]["num_steps"]

ENVIRONMENT = {
    k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "EBM", "RAY", "DVC"))
} | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}


def start(folder: Path, *command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": str(folder)} | environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(folder: Path, *command: str, **environment: str) -> tuple[int, str]:
    process = start(folder, *command, **environment)
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        kill(process)
    return process.returncode, output


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def done(tmp_path_factory, worker_id):
    """A copy of a run of the whole pipeline, which the processes of pytest share."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "undisturbed"
    with FileLock(f"{shared}.lock"):
        if not shared.with_suffix(".txt").exists():
            shared.mkdir()
            shared.with_suffix(".txt").write_text(undisturbed(shared)[1])
    folder = tmp_path_factory.mktemp("done") / "project"
    shutil.copytree(shared, folder, symlinks=True)
    return folder, shared.with_suffix(".txt").read_text()


def undisturbed(folder: Path) -> tuple[Path, str]:
    """A run of the whole pipeline in a copy of the project, and what it printed."""
    folder = copy_project(folder)
    code, output = finish(folder, "dvc", "repro")
    assert code == 0, output
    return folder, output


def run_folder(folder: Path) -> Path:
    (found,) = (p for p in (folder / "runs").iterdir() if p.name != "ray")
    return found


def test_it_ends_and_says_where_to_look(done):
    _, output = done
    assert "models:/ebm-digits/1  @candidate @champion" in output
    assert "mlflow ui" in output and "dvc plots show" in output
    assert "Traceback" not in output
    noise = [
        line
        for line in output.splitlines()
        if "ray::" in line or "(pid=" in line or "WARNING" in line
    ]
    noise = [line for line in noise if "stage: 'tune' is frozen" not in line]  # it is, on purpose
    assert not noise, noise


def test_a_fresh_clone_pulls_what_another_pushed_to_the_store(done, tmp_path, tmp_path_factory):
    folder, _ = done
    services = Stack(tmp_path_factory.mktemp("services"))
    services.prepare()
    services.store()
    variables = {k: v for k, v in services.settings().items() if k.startswith(("AWS_", "EBM_"))}
    where = f"{variables['EBM_STORE']}/dvc"
    remote = ("dvc", "remote", "add", "--local", "--default", "store", where)
    try:
        for command in (remote, ("dvc", "push", "dvc.yaml")):
            code, output = finish(folder, *command, **variables)
            assert code == 0, output
        clone = copy_project(tmp_path / "clone")
        shutil.copy(folder / "dvc.lock", clone)
        shutil.copytree(folder / "reports", clone / "reports")
        for command in (remote, ("dvc", "pull", "--allow-missing", "dvc.yaml"), ("dvc", "repro")):
            code, output = finish(clone, *command, **variables)
            assert code == 0, output
    finally:
        services.down()
    assert re.findall("Running stage '(.*)'", output) == ["sources"]
    _, output = finish(clone, "dvc", "status")
    assert re.findall("^([a-z@]+):", output, re.MULTILINE) == ["sources"], output
    for path in ("model/energy/energy.safetensors", "data/main/dataset/index.json"):
        assert (clone / path).read_bytes() == (folder / path).read_bytes()


def test_a_second_repro_does_nothing(done):
    folder, _ = done
    before = (folder / "dvc.lock").read_bytes()
    code, output = finish(folder, "dvc", "repro")
    assert code == 0
    assert re.findall("Running stage '(.*)'", output) == ["sources"]  # looks for replaced files
    assert (folder / "dvc.lock").read_bytes() == before


def latest_step(folder: Path) -> int:
    steps = [
        int(p.parent.name.removeprefix("step-"))
        for p in (folder / "runs").glob("*/step-*/manifest.json")
    ]
    return max(steps, default=0)


def check_tracking(folder: Path, starts: int) -> None:
    """One run, one version, each step once, pictures, lineage."""
    script = f"""
import json, mlflow
client = mlflow.MlflowClient("sqlite:///{folder}/mlflow.db")
(experiment,) = [e for e in client.search_experiments() if e.name == "ebm-dist"]
(run,) = client.search_runs([experiment.experiment_id])
names = ["train/" + n for n in ("energy_pos", "energy_neg", "energy_gap", "loss_energy", "grad_norm_energy", "chain_score_norm", "chain_age_mean", "chain_at_bounds")]
steps = {{n: [m.step for m in client.get_metric_history(run.info.run_id, n)] for n in names}}
speed = [m.value for m in client.get_metric_history(run.info.run_id, "train/steps_per_second")]
(version,) = client.search_model_versions("name = 'ebm-digits'")
files = [f.path for d in (None, "reports/samples/plots", "reports/ood/plots", "reports/histogram/plots", "record") for f in client.list_artifacts(run.info.run_id, d)]
print(json.dumps(dict(steps=steps, speed=speed, params=run.data.params, tags=run.data.tags, version_tags=version.tags, aliases=client.get_registered_model("ebm-digits").aliases, files=files, status=run.info.status, metrics=run.data.metrics)))
"""
    code, output = finish(folder, sys.executable, "-c", script)
    assert code == 0, output
    found = json.loads(output.splitlines()[-1])
    assert all(
        sorted(steps) == list(range(10, NUM_STEPS + 1, 10)) for steps in found["steps"].values()
    ), found["steps"]
    assert len(found["speed"]) > 15 and min(found["speed"]) > 0
    assert float(found["params"]["sampler.temperature"]) == pytest.approx(0.25)
    assert found["params"]["sampler.step_size"] == "0.02"
    assert {name: str(version) for name, version in found["aliases"].items()} == {
        "candidate": "1",
        "champion": "1",
    } and found["status"] == "FINISHED"
    assert (
        "reports/samples/plots/samples.png" in found["files"]
        and "reports/samples/plots/chains.gif" in found["files"]
    )
    assert "record/metrics.jsonl" in found["files"]
    assert "chains.png" in found["files"]  # chains over the training
    for tags in (found["tags"], found["version_tags"]):
        assert tags["train.starts"] == str(starts)
        assert {
            "git.commit",
            "data.digest",
            "config.digest",
            "train.workers",
            "train.ray_jobs",
            "objective",
            "sampler",
            "dvc.data/main",
            "dvc.model/energy",
        } <= tags.keys()
    assert found["metrics"]["eval/ood/uniform.auroc"] > 0.5


def test_one_run_one_version_every_step_once(done):
    check_tracking(done[0], starts=1)


def test_the_champion_loads_in_a_new_process_without_pickle_and_agrees(done, tmp_path):
    folder, _ = done
    trained = models.load(folder / "model/energy")
    x = shards.read_split(shards.read_index(folder / "data/main/dataset"), "test")[0][:50]
    np.save(tmp_path / "x.npy", x.numpy())
    script = f"""
import sys, numpy as np, mlflow
mlflow.set_tracking_uri("sqlite:///{folder}/mlflow.db")
loaded = mlflow.pyfunc.load_model("models:/ebm-digits@champion")
x = np.load(r"{tmp_path}/x.npy")
np.save(r"{tmp_path}/e.npy", loaded.predict(x))
for bad in (x[:, :, :4], np.full_like(x[:1], np.nan)):
    try:
        loaded.predict(bad)
    except mlflow.exceptions.MlflowException as refused:
        print("refused:", str(refused).splitlines()[0][:80])
print("input", loaded.metadata.metadata["input"])
"""
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=ENVIRONMENT | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stderr
    assert process.stdout.count("refused:") == 2 and "[-1, 1, 8, 8]" in process.stdout
    expected = trained.energy(x).numpy()
    assert np.array_equal(np.load(tmp_path / "e.npy"), expected)
    files = [
        p
        for p in (folder / "mlruns").rglob("*")
        if p.suffix in (".pkl", ".pickle", ".pth", ".pt", ".bin")
    ]
    assert not files


def test_the_champion_is_served_and_what_it_cannot_do_is_status_400(done):
    folder, _ = done
    port = pages.free_port()
    command = (
        "mlflow",
        "models",
        "serve",
        "-m",
        "models:/ebm-digits@champion",
        "--env-manager",
        "local",
        "-p",
        port,
    )
    process = start(folder, *command, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")

    def ask(x, **params):
        body = json.dumps({"inputs": x.tolist(), "params": params}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return np.array(json.loads(answer.read())["predictions"], np.float32)

    try:
        pages.wait_for(lambda: pages.answers(f"http://127.0.0.1:{port}"))
        trained = models.load(folder / "model/energy")
        x = shards.read_split(shards.read_index(folder / "data/main/dataset"), "test")[0][:3]
        np.testing.assert_allclose(ask(x), trained.energies(x).numpy(), rtol=1e-5)
        drawn = ask(x, task="sample", num_steps=20)
        assert drawn.shape == (3, 1, 8, 8) and np.array_equal(
            drawn, ask(x, task="sample", num_steps=20, seed=0)
        )
        assert np.array_equal(ask(x, task="complete", num_steps=2)[:, :, :4], x[:, :, :4].numpy())
        for wrong, params in (
            (x, {"task": "classify"}),
            (x, {"task": "dream"}),
            (x, {"num_steps": "many"}),
            (x[:, :, :4], {}),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(wrong, **params)
            assert refused.value.code == 400, (params, refused.value.read())
    finally:
        kill(process)


def test_a_newcomer_finds_version_alias_card_and_pictures_in_the_pages_of_mlflow(done, tmp_path):
    """In a real browser; the screenshots stay in EBM_ARTIFACTS, if that is set."""
    browser = pages.browser()
    folder, _ = done
    port = pages.free_port()
    address, kept = f"http://127.0.0.1:{port}", Path(os.environ.get("EBM_ARTIFACTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    server = start(folder, *pages.mlflow_server(folder, port))
    try:
        pages.wait_for(lambda: pages.answers(address))
        with urllib.request.urlopen(
            f"{address}/api/2.0/mlflow/model-versions/search", timeout=20
        ) as reply:
            version = json.loads(reply.read())["model_versions"][0]
        run = f"{address}/#/experiments/1/runs/{version['run_id']}"
        texts = {
            name: pages.look(browser, page, kept / f"{name}.png", tmp_path / name)
            for name, page in {
                "models": f"{address}/#/models/ebm-digits",
                "version": f"{address}/#/models/ebm-digits/versions/1",
                "samples": f"{run}/artifacts/reports/samples/plots/samples.png",
                "card": f"{run}/artifacts/model-card.md",
            }.items()
        }
    finally:
        kill(server)
    assert "champion" in texts["models"] and "candidate" in texts["models"]
    for section in (
        "Data",
        "Method",
        "Sampler",
        "Gates",
        "Metrics",
        "Limits",
        "Lineage",
        "Pictures",
    ):
        assert section in texts["version"]
    assert "Optical Recognition of Handwritten Digits" in texts["version"]
    assert "samples.png" in texts["samples"] and "model-card.md" in texts["card"]
    picture = np.asarray(Image.open(kept / "samples.png").convert("L"))
    assert picture.std() > 10


def test_killed_at_any_time_and_run_again_ends_with_the_same_lock(request, tmp_path):
    """SIGKILL to the whole process group: while training (twice, before and after checkpoints), and in any stage."""
    folder, chance = copy_project(tmp_path / "killed"), random.Random(5)
    (folder / ".dvc").mkdir(exist_ok=True)
    reached = []
    for attempt in range(3):
        process = start(folder, "dvc", "repro")
        deadline = time.monotonic() + 200
        if attempt < 2:  # after the next few checkpoints
            seen = max(reached, default=0)
            while (
                time.monotonic() < deadline
                and process.poll() is None
                and latest_step(folder) <= seen
            ):
                time.sleep(0.05)
            time.sleep(chance.random())
            reached.append(latest_step(folder))
        else:  # in an evaluation or in register
            wanted = chance.choice(["reports/main/samples/metrics.json", "mlflow.db"])
            while (
                time.monotonic() < deadline
                and process.poll() is None
                and not (folder / wanted).exists()
            ):
                time.sleep(0.05)
            time.sleep(3 * chance.random())
        kill(process)
    assert 0 < reached[0] < NUM_STEPS
    code, output = finish(folder, "dvc", "repro")
    assert code == 0, output
    golden, _ = request.getfixturevalue("done")  # two processes may make it and be killed at once
    assert (folder / "dvc.lock").read_text() == (golden / "dvc.lock").read_text()
    events = list(read_lines(run_folder(folder) / EVENTS))
    assert len(events) >= 2 and events[-1]["step"] > 0
    assert [r["step"] for r in read_lines(run_folder(folder) / METRICS)] == list(
        range(10, NUM_STEPS + 1, 10)
    )
    check_tracking(folder, starts=len(events))


def test_what_the_pages_let_a_newcomer_type_works(done):
    """Each line of a block of bash, and each block of Python, in a folder where the main job has run."""
    folder, _ = done
    for recipe in (
        "meg-25gaussians",
        "meg-8gaussians",
    ):  # two with committed results that the pages name
        shutil.copytree(ROOT / "reports" / recipe, folder / "reports" / recipe)

    def follow(page: str) -> int:
        blocks = re.findall(
            r"^```(bash|python)\n(.*?)^```", (folder / page).read_text(), re.S | re.M
        )
        lines = [
            line
            for kind, block in blocks
            for line in ([block] if kind == "python" else block.splitlines())
        ]
        for line in lines:
            if line not in ("make install", "dvc repro"):  # what this folder came from
                command = [sys.executable, "-c", line] if "\n" in line else ["bash", "-c", line]
                code, output = finish(folder, *command)
                assert code == 0 and "Traceback" not in output, f"{page}: {line}\n{output}"
        return len(lines)

    with ThreadPoolExecutor(2) as readers:
        assert (
            sum(
                readers.map(
                    follow,
                    (
                        "docs/howto/extend.md",
                        "docs/index.md",
                        "docs/howto/run.md",
                        "docs/howto/browse.md",
                    ),
                )
            )
            > 15
        )
    assert "Chains over the training" in (folder / "report.html").read_text()
    assert "reference</th>" in (folder / "compared.html").read_text()
    for made in (
        "samplers/my_langevin",
        "datasets/my_points",
        "evaluation/my_suite",
        "objectives/my_loss",
    ):
        (folder / "ebm_dist" / f"{made}.py").unlink()
    code, output = finish(
        folder, sys.executable, "-m", "pipelines.digests"
    )  # of the code as it was
    assert code == 0, output


def test_the_plots_of_dvc_need_no_network(done, tmp_path):
    folder, _ = done
    browser = pages.browser()
    for command in (
        (sys.executable, "-m", "infra.offline_plots"),
        ("dvc", "plots", "show", "-o", "dvc_plots"),
    ):
        code, output = finish(folder, *command)
        assert code == 0, output
    page = folder / "dvc_plots/index.html"
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=.?https?:", page.read_text())
    seen = pages.look(browser, f"file://{page}", tmp_path / "plots.png", tmp_path / "profile")
    drawn = len(re.findall(r"<canvas[^>]*>|<svg[^>]*class=\"marks", seen))
    assert drawn >= 3 and seen.count("<img") >= 5, (drawn, seen.count("<img"))


def train(folder: Path, params: Path, *more: str, **environment: str) -> tuple[int, str]:
    return finish(folder, sys.executable, "-m", "pipelines.train", "--params", str(params), "--data", str(folder / "data/main"),
                  "--out", "out", "--report", "report", "--runs", "other-runs", *more, **environment)  # fmt: skip


def variant(folder: Path, **sections: dict) -> Path:
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    for name, section in sections.items():
        values.setdefault(name, {}).update(section)
    path = folder / f"variant-{random.getrandbits(32)}.yaml"
    yaml.dump(values, path)
    return path


@pytest.mark.drill
def test_ray_with_one_worker_gives_the_same_model(done):
    folder, _ = done
    shutil.rmtree(folder / "other-runs", ignore_errors=True)
    code, output = train(folder, variant(folder, cluster={"workers": 1}))
    assert code == 0, output
    check_model(folder)


def check_model(folder: Path) -> None:
    """The model of another training is bit for bit that of the undisturbed one."""
    for name in ("energy.safetensors", "chains.safetensors", "model.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "model/energy" / name).read_bytes()


def test_four_workers_one_of_them_killed_and_restarted_give_the_same_model(done):
    folder, _ = done
    shutil.rmtree(folder / "other-runs", ignore_errors=True)
    params = variant(folder, cluster={"workers": 4, "cpus_per_worker": 0.5})
    process = start(folder, sys.executable, "-m", "pipelines.train", "--params", str(params), "--data", "data/main",
                    "--out", "out", "--report", "report", "--runs", "other-runs")  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        not list((folder / "other-runs").glob("*/step-0000004*/manifest.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    victims = [pid for pid in descendants(process.pid) if "RayTrainWorker" in command_of(pid)]
    assert victims, "no worker found"
    os.kill(victims[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    check_model(folder)
    (run,) = (p for p in (folder / "other-runs").iterdir() if p.name != "ray")
    events = list(read_lines(run / EVENTS))
    assert len(events) == 2 and events[1]["step"] >= 40
    assert "1 restarts" in output


@pytest.mark.parametrize(
    "whom",
    [
        "driver",
        *(pytest.param(whom, marks=pytest.mark.drill) for whom in ("group", "driver twice")),
    ],
)
def test_sigterm_is_a_stop_with_a_checkpoint_and_the_same_command_goes_on(done, whom):
    """To the driver: all workers stop at the same step, exit code 143. To all processes, or twice: at once, from the last checkpoint."""
    folder, _ = done
    shutil.rmtree(folder / "other-runs", ignore_errors=True)
    process = start(folder, sys.executable, "-m", "pipelines.train", "--params", "params.yaml", "--data", "data/main",
                    "--out", "out", "--report", "report", "--runs", "other-runs")  # fmt: skip
    deadline = time.monotonic() + 120
    while (
        not list((folder / "other-runs").glob("*/step-0000004*/manifest.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    began = time.monotonic()
    if whom == "group":
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
        if whom == "driver twice":
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)  # Ray looks for its lost head for a minute
    assert "Traceback" not in output, output
    (run,) = (p for p in (folder / "other-runs").iterdir() if p.name != "ray")
    stopped = checkpoint.verify(checkpoint.latest(run))
    assert 40 <= stopped < NUM_STEPS
    if whom == "driver":
        assert (
            process.returncode == 143 and f"stopped at step {stopped} of {NUM_STEPS}" in output
        ), output
        assert time.monotonic() - began < 20
    else:
        assert process.returncode != 0, output
    code, output = train(folder, folder / "params.yaml")
    assert code == 0, output
    check_model(folder)


def descendants(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        parent = queue.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            found += children
            queue += children
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.drill
def test_training_does_not_notice_that_the_tracking_server_is_away_and_register_brings_it_up_to_date(
    done,
):
    """Nothing listens at the address; the record is complete, and goes to the database later."""
    folder, _ = done
    shutil.rmtree(folder / "other-runs", ignore_errors=True)
    params = variant(folder, train={"num_steps": 60}, register={"gates": []})
    code, output = train(folder, params, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 0 and "is away" in output and output.count("is away") == 1, output
    (run,) = (p for p in (folder / "other-runs").iterdir() if p.name != "ray")
    assert [row["step"] for row in read_lines(run / METRICS)] == [10, 20, 30, 40, 50, 60]
    register = (sys.executable, "-m", "pipelines.register", "--params", str(params), "--model", "out", "--reports", "reports/main",
                "--out", "registered.json", "--runs", "other-runs")  # fmt: skip
    code, output = finish(folder, *register, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert code == 7 and "cannot be reached" in output and "Traceback" not in output, output
    code, output = finish(folder, *register, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/later.db")
    assert code == 0, output
    assert json.loads((folder / "registered.json").read_text())["aliases"] == [
        "candidate"
    ]  # no gates: no champion


def test_bad_input_is_one_message_and_an_exit_code_and_nothing_is_lost(done):
    folder, _ = done
    shutil.rmtree(folder / "other-runs", ignore_errors=True)

    def fails(expected_code, *texts, params=folder / "params.yaml", **environment):
        code, output = train(folder, params, **environment)
        assert code == expected_code, output
        assert "Traceback" not in output and output.count("error: ") == 1, output
        assert all(text in output for text in texts), output

    fails(
        2, "sampler.step_size", "greater than 0", params=variant(folder, sampler={"step_size": -1})
    )
    fails(
        6,
        "need 64 CPUs",
        "lower cluster.workers",
        params=variant(folder, cluster={"workers": 4, "cpus_per_worker": 16.0}),
    )
    fails(6, "GPUs", params=variant(folder, cluster={"use_gpu": True}))
    fails(
        3,
        "is not finite",
        "no weight was changed",
        "optimizer.lr",
        params=variant(folder, optimizer={"lr": 1e30}),
    )
    tar = folder / "data/main/dataset/train-000002.tar"
    content = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(content[:-1000] + b"\x01" + content[-999:])
    fails(4, "train-000002.tar", "altered", "prepare")
    tar.write_bytes(b"")
    fails(4, "train-000002.tar", "truncated")
    tar.write_bytes(content)
    shutil.rmtree(folder / "other-runs")
    shutil.copytree(folder / "runs", folder / "other-runs")
    run = folder / "other-runs" / run_folder(folder).name
    num_checkpoints = len(list(run.glob("step-*")))
    for path in run.glob("step-*/weights.safetensors"):
        path.write_bytes(b"broken")
    fails(5, "no whole checkpoint", "weights.safetensors", "start from the beginning")
    assert len(list(run.glob("step-*"))) == num_checkpoints > 1, "kept for inspection"
    assert checkpoint.MANIFEST in [p.name for p in next(run.glob("step-*")).iterdir()]
