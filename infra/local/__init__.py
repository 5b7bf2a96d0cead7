"""The services of production on one Linux host without Docker.

They are a Ray head and workers, MLflow on PostgreSQL, and an S3-compatible store. All listen on
loopback only and require a token or a password, generated for each folder.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
BUCKET = "ebm"
_BIN = Path(sys.executable).parent
_START_S = 90
# Ray gives up a silent node after about 5 s instead of 60; a job has 60 s to stop
_RAY_QUICK = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


class Stack:
    """The services of one folder. They use free ports and change nothing else on the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.file = self.folder / "stack.json"
        self.pids: dict[str, int] = {}
        self.ports: dict[str, int] = {}
        self.secrets: dict[str, str] = {}
        self.ray_folder = ""
        if self.file.exists():
            vars(self).update(json.loads(self.file.read_text()))

    # the environment of a client

    def environment(self) -> dict[str, str]:
        """Return the environment of a client, which is also that of the services."""
        inherited = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("RAY_", "MLFLOW_", "AWS_", "EBM_STORE", "PG"))
        }
        return inherited | self.settings()

    def settings(self) -> dict[str, str]:
        """Return the variables that a client needs."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray to loopback; see node.py
            "GLOO_SOCKET_IFNAME": "lo",
            "RAY_AUTH_TOKEN": self.secrets["ray"],
            "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{self.ports['dashboard']}",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{self.ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.secrets["mlflow"],
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.ports['store']}",
            "AWS_ACCESS_KEY_ID": "ebm",
            "AWS_SECRET_ACCESS_KEY": self.secrets["store"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "EBM_STORE": f"s3://{BUCKET}",
        }

    # up and down

    def up(
        self, num_workers: int = 2, cpus: int = 1, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Start all services and wait until they answer."""
        self.prepare()
        for start in (self.store, self.postgres, self.mlflow, self.head):
            say(f"starting {start.__name__} ...")
            start()
        for number in range(num_workers):
            self.worker(number, cpus)
        self._await("ray workers", lambda: len(self.nodes()) >= num_workers + 1)
        exports = "".join(f"export {name}='{value}'\n" for name, value in self.settings().items())
        write_private(self.folder / "env", exports)

    def prepare(self) -> None:
        """Create folder, ports and secrets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # PostgreSQL may run as another user
        names = ("store", "postgres", "mlflow", "gcs", "dashboard", "client")
        self.ports = self.ports or dict(zip(names, free_ports(len(names)), strict=True))
        self.secrets = self.secrets or {
            name: secrets.token_hex(32) for name in ("ray", "mlflow", "store", "postgres", "flask")
        }

    def down(self) -> None:
        """Stop what this stack started and nothing else; keep the data in the folder."""
        for name in list(self.pids)[::-1]:
            self.stop(name)
        if self.ray_folder:
            shutil.rmtree(self.ray_folder, ignore_errors=True)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop one service by SIGTERM; SIGKILL kills all its processes, as if a machine died."""
        pid = self.pids.pop(name)
        self._save()
        family = [pid, *descendants(pid)]
        for member in family if how == signal.SIGKILL else [pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, how)
        deadline = time.monotonic() + 20
        while any(map(is_alive, family)):
            if time.monotonic() > deadline:
                for member in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(member, signal.SIGKILL)
            time.sleep(0.1)

    # the services

    def store(self) -> None:
        """Start the S3 server of rclone on a folder."""
        (self.folder / "store" / BUCKET).mkdir(parents=True, exist_ok=True)
        (self.folder / "store" / "mlflow").mkdir(exist_ok=True)
        variables = {
            "RCLONE_AUTH_KEY": f'"ebm,{self.secrets["store"]}"',
            "RCLONE_CONFIG": "/dev/null",
        }
        address = f"{HOST}:{self.ports['store']}"
        rclone, served = str(_BIN / "rclone"), str(self.folder / "store")
        command = [rclone, "serve", "s3", "--addr", address, "--no-cleanup", served]
        self._start("store", command, variables)
        self._await("object store", lambda: status(f"http://{address}/") is not None)

    def postgres(self) -> None:
        """Start PostgreSQL, which refuses to run as root."""
        data, user = self.folder / "postgres", "postgres" if os.getuid() == 0 else None
        become: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        if subprocess.run(["test", "-x", str(self.folder)], check=False, **become).returncode:
            raise SystemExit(
                f"{self.folder}: the user postgres cannot enter it;"
                " choose another --folder, or do not run this as root"
            )
        if not (data / "PG_VERSION").exists():
            data.mkdir(exist_ok=True)
            password = write_private(self.folder / "postgres.password", self.secrets["postgres"])
            for path in (data, password) if user else ():
                shutil.chown(path, user)
            options = [
                "--auth=scram-sha-256",
                "--username=mlflow",
                f"--pwfile={password}",
                "-D",
                str(data),
            ]
            subprocess.run(["initdb", *options], check=True, capture_output=True, cwd="/", **become)
        address = ["-p", str(self.ports["postgres"]), "-h", HOST, "-k", ""]
        self._start("postgres", ["postgres", "-D", str(data), *address], **become)
        self._await("PostgreSQL", lambda: is_open(self.ports["postgres"]))

    def mlflow(self) -> None:
        """Start the MLflow server with basic authentication and artifacts in the store.

        It refuses requests with other Host headers.
        """
        server = f"{HOST}:{self.ports['postgres']}"
        database = f"postgresql+psycopg2://mlflow:{self.secrets['postgres']}@{server}/postgres"
        auth = f"""[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{self.folder}/mlflow-auth.db
admin_username = admin
admin_password = {self.secrets["mlflow"]}
"""
        variables = {
            "MLFLOW_AUTH_CONFIG_PATH": str(write_private(self.folder / "mlflow-auth.ini", auth)),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["flask"],
            "MLFLOW_BACKEND_STORE_URI": database,  # every user can read a command line
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        address = f"{HOST}:{self.ports['mlflow']}"
        command = [
            str(_BIN / "mlflow"), "server", "--app-name", "basic-auth",
            "--artifacts-destination", "s3://mlflow", "--workers", "1",
            "--host", HOST, "--port", str(self.ports["mlflow"]),
            "--allowed-hosts", f"{address},localhost:{self.ports['mlflow']}",
        ]  # fmt: skip
        self._start("mlflow", command, variables)
        self._await("MLflow", lambda: status(f"http://{address}/health") == 200)

    def head(self) -> None:
        """Start the Ray head without CPUs: control, dashboard and job server."""
        self.ray_folder = self.ray_folder or tempfile.mkdtemp(prefix="ebm-")
        self._ray("head", "--head", "--port", str(self.ports["gcs"]), "--dashboard-host", HOST,
                  "--dashboard-port", str(self.ports["dashboard"]),
                  "--ray-client-server-port", str(self.ports["client"]),
                  "--num-cpus", "0", "--disable-usage-stats")  # fmt: skip
        url = f"http://{HOST}:{self.ports['dashboard']}/api/version"
        self._await("Ray", lambda: status(url, self.secrets["ray"]) == 200)

    def worker(self, number: int, cpus: int = 1) -> None:
        """Start one more node: a raylet of its own."""
        self._ray(
            f"worker-{number}", "--address", f"{HOST}:{self.ports['gcs']}", "--num-cpus", str(cpus)
        )

    def nodes(self) -> list[dict[str, str]]:
        """Return the nodes that the head counts as alive."""
        url = f"http://{HOST}:{self.ports['dashboard']}/api/v0/nodes"
        request = urllib.request.Request(
            url, headers={"Authorization": f"Bearer {self.secrets['ray']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    # helpers

    def _ray(self, name: str, *arguments: str) -> None:
        """Start a raylet with a folder of its own, as on a separate machine."""
        folder = Path(self.ray_folder) / name  # a short path: Ray creates sockets below it
        memory = ["--object-store-memory", str(150 << 20)]
        node = Path(__file__).with_name("node.py")
        (agent,) = free_ports(1)  # the default is the same for all clusters on a machine
        network = ["--node-ip-address", HOST, "--dashboard-agent-listen-port", str(agent)]
        command = [sys.executable, str(node), "start", "--block", *network, *memory]
        self._start(name, [*command, "--temp-dir", str(folder), *arguments])

    def _start(
        self, name: str, command: list[str], more: Mapping[str, str] | None = None, **how: Any
    ) -> None:
        common = {"OMP_NUM_THREADS": "1", **_RAY_QUICK, "PATH": f"{_BIN}:{os.environ['PATH']}"}
        environment = self.environment() | common | dict(more or {})
        with (self.folder / f"{name}.log").open("ab") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, start_new_session=True, **pipes, **how
            )
        self.pids[name] = process.pid
        self._save()

    def _await(self, what: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, KeyError, ValueError):
                if is_ready():
                    return
            dead = [name for name, pid in self.pids.items() if not is_alive(pid)]
            if dead:
                raise SystemExit(f"{what}: {dead[0]} ended; see {self.folder / dead[0]}.log")
            time.sleep(0.2)
        raise SystemExit(
            f"{what} did not answer within {_START_S} s; see the logs in {self.folder}"
        )

    def _save(self) -> None:
        state = {
            "pids": self.pids,
            "ports": self.ports,
            "secrets": self.secrets,
            "ray_folder": self.ray_folder,
        }
        write_private(self.file, json.dumps(state, indent=2))


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind((HOST, 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def status(url: str, token: str | None = None, **headers: str) -> int | None:
    """Return the HTTP status of a GET; None if nothing answers."""
    request = urllib.request.Request(
        url, headers=headers | ({"Authorization": f"Bearer {token}"} if token else {})
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def is_open(port: int) -> bool:
    """Return whether a port on loopback accepts connections."""
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # reap it if it is a child
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """Return all processes below a process."""
    pids, queue = list[int](), [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                pids += children
                queue += children
    return pids


def write_private(path: Path, text: str) -> Path:
    """Write a file that only this user can read, and return its path.

    A wider mode of an existing file is narrowed. A link in its place is refused.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate()
        file.write(text)
    return path
