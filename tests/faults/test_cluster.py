"""The local cluster: who is let in, what survives. All scenarios of the drill: ``pytest -m drill`` or ``python -m tests.faults.drill``."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request

import pytest

from infra.local import HOST, descendants, status
from tests.faults import drill

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("postgres") and shutil.which("ss")),
        reason="needs PostgreSQL's programs and ss (iproute2)",
    ),
]
ALWAYS = ("job_stopped",)


@pytest.fixture(scope="module")
def cluster():
    before = dict(os.environ)
    with drill.drill() as ready:
        drill.SCENARIOS["undisturbed"](ready, "undisturbed")
        yield ready
    os.environ.clear()
    os.environ.update(before)


def listeners(stack):
    """Addresses that processes of the stack listen on, and who does."""
    family = {member for pid in stack.pids.values() for member in (pid, *descendants(pid))}
    lines = subprocess.run(
        ["ss", "-Hltnp"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {
        line.split()[3]: line.split()[-1]
        for line in lines
        if any(f"pid={pid}," in line for pid in family)
    }


@pytest.mark.slow
def test_nothing_listens_on_anything_but_loopback(cluster):
    found = listeners(cluster.stack)
    assert len(found) > 10, "Ray, MLflow, PostgreSQL and the store were looked for"
    outside = {
        address: who
        for address, who in found.items()
        if not address.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:"))
    }
    assert not outside


@pytest.mark.slow
def test_a_job_without_the_token_is_refused(cluster):
    url = os.environ["RAY_API_SERVER_ADDRESS"]
    assert status(f"{url}/api/jobs/") == 401
    assert status(f"{url}/api/jobs/", "0" * 64) in (401, 403)
    assert status(f"{url}/api/jobs/", cluster.stack.secrets["ray"]) == 200
    body = json.dumps({"entrypoint": "touch mark"}).encode()
    request = urllib.request.Request(f"{url}/api/jobs/", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10)


@pytest.mark.slow
def test_a_driver_without_the_token_is_refused(cluster):
    script = f"import ray; ray.init('{HOST}:{cluster.stack.ports['gcs']}')"
    wrong = cluster.stack.environment() | {"RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=wrong,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0


@pytest.mark.slow
def test_the_tracking_server_refuses_strangers_and_foreign_hosts(cluster):
    url = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(url) == 401
    assert status(url, Host="evil.example") == 403
    assert status(os.environ["MLFLOW_TRACKING_URI"] + "/", Host="evil.example") == 403


@pytest.mark.slow
def test_the_store_refuses_strangers(cluster):
    assert status(os.environ["AWS_ENDPOINT_URL"] + "/ebm?list-type=2") in (400, 401, 403)


@pytest.mark.slow
def test_no_secret_is_on_a_command_line_in_a_job_or_in_a_log(cluster):
    secrets = list(cluster.stack.secrets.values())
    family = [member for pid in cluster.stack.pids.values() for member in (pid, *descendants(pid))]
    shown = "".join(drill.command_of(pid) for pid in family)
    shown += "".join(str(job) for job in cluster.client.list_jobs())
    shown += "".join(
        cluster.client.get_job_logs(job.submission_id) for job in cluster.client.list_jobs()
    )
    shown += "".join(
        path.read_text(errors="replace") for path in cluster.stack.folder.glob("*.log")
    )
    assert len(shown) > 1000 and not [secret for secret in secrets if secret in shown]
    private = [
        p
        for p in cluster.stack.folder.iterdir()
        if p.is_file() and any(s in p.read_text(errors="replace") for s in secrets)
    ]
    assert private and all(path.stat().st_mode & 0o077 == 0 for path in private), private


def submit(cluster, *command):
    """As a user does, from the project's folder."""
    own = [sys.executable, "infra/submit.py", "--", *command]
    done = subprocess.run(
        own, cwd=cluster.project, capture_output=True, text=True, check=False, timeout=400
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_whole_pipeline_as_a_job_twice(cluster):
    """Prepared, trained, judged and registered on the cluster; the second time everything comes from the store."""
    cluster.configure("pipeline", 2, num_steps=100)
    code, output = submit(cluster, "python", "infra/repro.py")
    assert code == 0, output
    assert "models:/ebm-digits/1  @candidate @champion" in output
    results = cluster.stack.folder / "store/ebm/results"
    (first,) = results.iterdir()
    assert json.loads((first / "reports/main/train/metrics.json").read_text())["step"] == 100
    command = [sys.executable, "-c", "from ebm_dist.cli.commands import main; main()", "submit"]
    done = subprocess.run(
        command, cwd=cluster.project, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(results.iterdir()) == [first], "the same dvc.lock"
    runs = [
        p
        for p in (cluster.stack.folder / "store/ebm/runs").iterdir()
        if p.is_dir() and p.name != "ray"
    ]
    assert len(runs) == 1 and len((runs[0] / "events.jsonl").read_text().splitlines()) == 1, (
        "trained once"
    )


@pytest.mark.slow
def test_the_exit_code_of_a_job_is_the_pipeline_s(cluster):
    (cluster.project / "wrong.yaml").write_text("sampler: {name: langevin, step_size: -1}\n")
    code, output = submit(
        cluster,
        "python",
        "-m",
        "pipelines.train",
        "--params",
        "wrong.yaml",
        "--data",
        "d",
        "--out",
        "o",
        "--report",
        "r",
    )
    assert (
        code == 2
        and "wrong.yaml:1: dataset: a name is needed" in output
        and "Traceback" not in output
    ), output


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n in ALWAYS else pytest.mark.drill)
        for n in drill.SCENARIOS
        if n != "undisturbed"
    ],
)
def test_it_survives(cluster, name):
    outcome = drill.SCENARIOS[name](cluster, name)
    assert outcome.recovered == outcome.injected > 0
    print(outcome)
