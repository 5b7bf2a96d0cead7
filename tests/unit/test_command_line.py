"""The command ebm-dist: what a doctor sees, what a new plugin is, what recipes say."""

import contextlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from ebm_dist import config
from ebm_dist.cli import commands, doctor, plan, scaffold
from ebm_dist.errors import ConfigError, DataError, printable
from ebm_dist.report import table
from ebm_dist.runs import lineage
from tests import helpers, pages
from tests.helpers import ROOT

VARIABLES = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "EBM_STORE",
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip


@pytest.fixture
def healthy(digits_data, tmp_path, monkeypatch):
    """A machine on which nothing is wrong: ``check(name, **settings)`` gives that check's finding."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "main").mkdir()
    shutil.copytree(digits_data, tmp_path / "main/dataset")
    monkeypatch.setattr(doctor, "_SHM", tmp_path)
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: range(2))

    def check(name, **settings):
        found = {
            one.check: one for one in doctor.examine(helpers.params(**settings), tmp_path / "main")
        }
        return found[name] if name else found

    check.data = tmp_path / "main/dataset"
    return check


@contextlib.contextmanager
def server(status, body, header="", value=""):
    """Answers with the status, or 200 where a request has the header."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(
                200 if header and self.headers.get(header, "").startswith(value) else status
            )
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as own:
        threading.Thread(target=own.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{own.server_port}"
        own.shutdown()


@pytest.fixture
def run(capsys, monkeypatch):
    """The command in this process: exit code, output, errors."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["ebm-dist", *arguments])
        before = signal.getsignal(signal.SIGTERM)
        try:
            commands.main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, *capsys.readouterr()

    return command


def test_all_is_well(healthy):
    found = healthy("")
    assert len(found) == 9 and not [one for one in found.values() if one.fix]
    assert "digits: " in found["data"].seen and "train" in found["data"].seen


def test_no_shards(healthy):
    (healthy.data / "train-000003.tar").unlink()
    assert "1 shards are missing, such as train-000003.tar" in healthy("data").seen
    (healthy.data / "index.json").unlink()
    assert "index.json" in healthy("data").seen and healthy("data").fix == "dvc repro prepare"


def test_no_cpus_and_no_gpu(healthy):
    assert healthy("CPUs", cluster={"workers": 4}).seen == "2 here, 4 workers ask for 4"
    assert "cluster.workers" in healthy("CPUs", cluster={"workers": 2, "cpus_per_worker": 2.0}).fix
    import torch

    if not torch.cuda.is_available():
        assert "PyTorch sees none" in healthy("GPUs", cluster={"use_gpu": True}).seen


def test_a_package_of_the_wrong_version_or_none(healthy, monkeypatch):
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "2.9.0" if name == "ray" else version(name)
    )
    found = healthy("packages")
    assert found.seen.startswith("ray 2.9.0 is outside") and found.fix.startswith(
        "pip install 'ray"
    )

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert healthy("packages").seen == "torch is not installed"


def test_a_cluster_that_is_away_of_another_version_or_closed(healthy, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "127.0.0.1:1 cannot be reached" in healthy("Ray cluster").seen
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert healthy("Ray cluster").fix.startswith("set RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    ours = importlib.metadata.version("ray")
    for theirs, value, expected in (
        ("2.1.0", "Bearer r", "runs Ray 2.1.0, here is"),
        (ours, "Bearer w", "does not let us in"),
        (ours, "Bearer r", "can be reached"),
    ):
        with server(401, {"ray_version": theirs}, "Authorization", value) as address:
            monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
            assert expected in healthy("Ray cluster").seen


def test_a_tracking_server_that_is_away_or_closed(healthy, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert "cannot be reached" in healthy("tracking").seen
    with server(401, {}, "Authorization", "Basic dTpw") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert "MLFLOW_TRACKING_USERNAME" in healthy("tracking").fix
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "u")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "p")
        assert healthy("tracking").seen == f"{address} answers"
    with server(500, {}) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert "status 500" in healthy("tracking").seen


def test_little_room_and_a_store_that_is_none(healthy, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage(64 << 20, 0, 64 << 20))
    assert healthy("shared memory").seen == "0.1 GiB free of 0.1, at least 1 are needed"
    assert "shm-size" in healthy("shared memory").fix and "dvc gc" in healthy("disk").fix
    monkeypatch.setenv("EBM_STORE", "ftp://somewhere")
    assert "ftp:// is not supported" in healthy("store").seen


@pytest.mark.slow  # a newcomer's sampler is in the tests of the main job
def test_new_plugins_pass_the_tests_over_their_folders(tmp_path):
    for name in ("ebm_dist", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for kind, (folder, _, _) in scaffold.KINDS.items():
        path, use = scaffold.write(kind, "my_own", tmp_path)
        assert path == tmp_path / f"ebm_dist/{folder}/my_own.py" and "my_own" in use
        assert path.read_text().startswith('"""My own: what it does')
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/contract",
        "-k",
        "my_own",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("name", "like", "expected"),
    [
        ("Mine", None, "small letters"),
        ("langevin", None, "one already"),
        ("mine", "langevan", "no such sampler; there: ancestral, dmala, gibbs, "),
    ],
)
def test_names_of_plugins(name, like, expected, tmp_path):
    with pytest.raises(ConfigError, match=expected):
        scaffold.write("sampler", name, tmp_path, like)


def test_control_characters_of_names_are_escaped_on_the_terminal(run, tmp_path):
    code, _, err = run("report", f"{tmp_path}/\x1b[2Jnothing\u202e")
    assert code == 4 and r"\x1b[2Jnothing\u202e" in err and "\x1b" not in err
    assert printable("plain text, é, \n") == "plain text, é, \n"
    assert printable("a\tb\ud800\x07") == r"a\tb\ud800\x07"


def test_recorded_results_have_day_and_commit(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    for name in ("one", "two"):
        (tmp_path / f"reports/{name}/ood").mkdir(parents=True)
        (tmp_path / f"reports/{name}/ood/metrics.json").write_text("{}")
    git("add", "reports/one")
    git("commit", "-m", "one", "--date=2001-02-03T04:05:06")
    recorded = lineage.recorded_on(tmp_path / "reports")
    assert list(recorded) == ["one"] and re.fullmatch(r"\d{4}-\d\d-\d\d \w{7,}", recorded["one"])
    assert lineage.recorded_on(tmp_path / "nothing") == {}


def test_recipes_and_their_comparison(tmp_path):
    found = {
        recipe.name: recipe
        for recipe in table.recipes(ROOT / "pipelines/recipes", ROOT / "reports")
    }
    assert found["digits"].is_run and found["digits"].title.startswith(
        "Implicit generation on 8x8 digits"
    )
    assert set(found) == {path.stem for path in (ROOT / "pipelines/recipes").glob("*.yaml")} - {
        "dvc",
        "rows",
    }
    assert all(config.load(ROOT / f"pipelines/recipes/{name}.yaml") for name in found)
    rows = {
        key: (a, b)
        for key, a, b in table.compare(
            ROOT / "reports/meg-25gaussians", ROOT / "reports/meg-8gaussians"
        )
    }
    assert rows["density.num_modes"] == (25, 8)
    with pytest.raises(DataError, match="no suite judged both"):
        table.compare(ROOT / "reports/meg-25gaussians", ROOT / "reports/digits")


def test_a_plan_counts_and_does_a_step(digits_data, tmp_path):
    (tmp_path / "main").mkdir()
    shutil.copytree(digits_data, tmp_path / "main/dataset")
    found = {
        line.split()[0]: line
        for line in plan.lines(helpers.params(cluster={"workers": 3}), tmp_path / "main")
    }
    assert found["shards"] == "shards    4 logical ones for 3 workers: 1, 1, 2"
    parameters = 64 * 24 + 24 + 24 * 16 + 16 + 16 + 1
    assert f"energy {parameters:,} parameters" in found["networks"]
    assert (
        "12 of 16 samples" in found["steps"] and "4 of them, of which two are kept" in found["disk"]
    )
    assert "in memory" in found["held"] and "of data in each worker" in found["held"]
    assert "ms a step" in found["time"] and "(ordered)" in found["network"]
    with pytest.raises(DataError, match="index"):
        list(plan.lines(helpers.params(), tmp_path))


def test_a_job_is_submitted_with_the_exit_code_of_the_job_or_of_its_refusal(
    run, digits_data, photos_data, tmp_path
):
    """A job that really runs, on a real cluster: tests/faults/test_cluster.py."""
    (tmp_path / "main").mkdir()
    shutil.copytree(digits_data, tmp_path / "main/dataset")
    shutil.copytree(photos_data, tmp_path / "main/photos")
    code, out, err = run("submit", "--dry-run", "--data", str(tmp_path / "main"))
    assert code == 0 and "shards" in out and "minutes of training" in out, err
    command = [
        sys.executable,
        "-c",
        "from ebm_dist.cli.commands import main; main()",
        "submit",
    ]  # it becomes the submitter
    nobody = os.environ | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{pages.free_port()}"}
    done = subprocess.run(
        command, cwd=ROOT, env=nobody, capture_output=True, text=True, check=False
    )
    assert (
        done.returncode == 6
        and "error: no job was submitted" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr


def test_samples_of_a_model_as_a_picture_or_an_array(run, digits_data, tmp_path):
    helpers.build(helpers.params(), digits_data).fit(tmp_path / "run", helpers.Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", helpers.params(), digits_data)
    for name in ("x.png", "x.npy"):
        code, out, err = run(
            "sample",
            str(tmp_path / "model"),
            "--out",
            str(tmp_path / name),
            "--count",
            "7",
            "--steps",
            "3",
        )
        assert code == 0 and "7 samples" in out, err
    assert np.load(tmp_path / "x.npy").shape == (7, 1, 8, 8)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_speaks_plainly(run, tmp_path):
    code, out, _ = run("recipes")
    head, *rows = out.splitlines()
    assert code == 0 and head.split() == [
        "recipe",
        "results",
        "recorded",
        "in",
        "shipped",
        "as",
        "title",
    ]
    (row,) = [row for row in rows if row.startswith("meg-25gaussians ")]
    place = head.index("results")
    assert re.match(r"\d{4}-\d\d-\d\d [0-9a-f]{7,} |not in git ", row[place:])
    code, out, _ = run("--completion", "bash")
    assert code == 0 and "meg" not in out and "rollback" in out and "complete -o" in out
    code, out, _ = run("doctor", "--data", str(tmp_path))
    assert code == 1 and "FIX   data:" in out and "-> dvc repro prepare" in out
    code, _, err = run("doctor", "--params", "nothing.yaml")
    assert (
        code == 2
        and err
        == "error: nothing.yaml: cannot be read (No such file or directory); give a parameter file with --params\n"
    )
    code, _, err = run("new", "sampler", "langevin")
    assert code == 2 and err.startswith("error: 'langevin': there is one already")
    code, _, err = run("compare", "digits", "digit")
    assert code == 4 and "reports/digit: no metrics" in err and "did you mean 'digits'?" in err
    assert "reports/digits" not in err
    code, _, err = run("compare", "nothing", "nowhere")
    assert code == 4 and "reports/nothing and " in err and "reports/nowhere: no metrics" in err
