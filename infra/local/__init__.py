"""What production has, on one Linux host without Docker: Ray head and workers, MLflow on PostgreSQL, an S3-compatible store.

Everything listens on loopback only and asks for a token or a password, drawn anew for each folder.
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
_RAY_QUICK = {  # a node that does not answer is given up after about 5 s, not 60; an idle stop of a job may take a minute
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


class Stack:
    """The services whose files lie in one folder. Ports come from the system; nothing else on the machine is touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.file = self.folder / "stack.json"
        self.pids: dict[str, int] = {}
        self.ports: dict[str, int] = {}
        self.secrets: dict[str, str] = {}
        self.ray_folder = ""
        if self.file.exists():
            vars(self).update(json.loads(self.file.read_text()))

    # the environment of whoever uses it

    def environment(self) -> dict[str, str]:
        """What a client needs; also the environment that the services themselves run in."""
        own = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("RAY_", "MLFLOW_", "AWS_", "EBM_STORE", "PG"))
        }
        return own | self.settings()

    def settings(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's own way to keep to loopback; see node.py
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
        """Start everything and wait until it answers."""
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
        """Folder, ports and secrets."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # PostgreSQL may run as another user
        names = ("store", "postgres", "mlflow", "gcs", "dashboard", "client")
        self.ports = self.ports or dict(zip(names, free_ports(len(names)), strict=True))
        self.secrets = self.secrets or {
            name: secrets.token_hex(32) for name in ("ray", "mlflow", "store", "postgres", "flask")
        }

    def down(self) -> None:
        """End what was started here and nothing else; data stay in the folder."""
        for name in list(self.pids)[::-1]:
            self.stop(name)
        if self.ray_folder:
            shutil.rmtree(self.ray_folder, ignore_errors=True)

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End one service: politely, or with SIGKILL to all its processes, as when a machine dies."""
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
        """rclone's S3 server on a folder."""
        (self.folder / "store" / BUCKET).mkdir(parents=True, exist_ok=True)
        (self.folder / "store" / "mlflow").mkdir(exist_ok=True)
        variables = {
            "RCLONE_AUTH_KEY": f'"ebm,{self.secrets["store"]}"',
            "RCLONE_CONFIG": "/dev/null",
        }
        address = f"{HOST}:{self.ports['store']}"
        self._start("store", [str(_BIN / "rclone"), "serve", "s3", "--addr", address, "--no-cleanup",
                              str(self.folder / "store")], variables)  # fmt: skip
        self._await("object store", lambda: status(f"http://{address}/") is not None)

    def postgres(self) -> None:
        """PostgreSQL, which refuses to run as root."""
        data, user = self.folder / "postgres", "postgres" if os.getuid() == 0 else None
        become: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        if subprocess.run(["test", "-x", str(self.folder)], check=False, **become).returncode:
            raise SystemExit(
                f"{self.folder}: the user postgres cannot enter it; choose another --folder, or do not run this as root"
            )
        if not (data / "PG_VERSION").exists():
            data.mkdir(exist_ok=True)
            password = write_private(self.folder / "postgres.password", self.secrets["postgres"])
            for path in (data, password) if user else ():
                shutil.chown(path, user)
            own = [
                "--auth=scram-sha-256",
                "--username=mlflow",
                f"--pwfile={password}",
                "-D",
                str(data),
            ]
            subprocess.run(["initdb", *own], check=True, capture_output=True, cwd="/", **become)
        address = ["-p", str(self.ports["postgres"]), "-h", HOST, "-k", ""]
        self._start("postgres", ["postgres", "-D", str(data), *address], **become)
        self._await("PostgreSQL", lambda: is_open(self.ports["postgres"]))

    def mlflow(self) -> None:
        """The MLflow server: basic authentication, artifacts through it into the store, foreign Host headers refused."""
        database = f"postgresql+psycopg2://mlflow:{self.secrets['postgres']}@{HOST}:{self.ports['postgres']}/postgres"
        auth = f"""[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{self.folder}/mlflow-auth.db
admin_username = admin
admin_password = {self.secrets["mlflow"]}
"""
        variables = {
            "MLFLOW_AUTH_CONFIG_PATH": str(write_private(self.folder / "mlflow-auth.ini", auth)),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.secrets["flask"],
            "MLFLOW_BACKEND_STORE_URI": database,  # not on the command line, where every user of the machine could read it
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        address = f"{HOST}:{self.ports['mlflow']}"
        self._start("mlflow", [str(_BIN / "mlflow"), "server", "--app-name", "basic-auth", "--artifacts-destination", "s3://mlflow",
                               "--host", HOST, "--port", str(self.ports["mlflow"]), "--workers", "1",
                               "--allowed-hosts", f"{address},localhost:{self.ports['mlflow']}"], variables)  # fmt: skip
        self._await("MLflow", lambda: status(f"http://{address}/health") == 200)

    def head(self) -> None:
        """Ray's head, with no CPUs of its own: control, dashboard and job server."""
        self.ray_folder = self.ray_folder or tempfile.mkdtemp(prefix="ebm-")
        self._ray("head", "--head", "--port", str(self.ports["gcs"]), "--dashboard-host", HOST,
                  "--dashboard-port", str(self.ports["dashboard"]), "--ray-client-server-port", str(self.ports["client"]),
                  "--num-cpus", "0", "--disable-usage-stats")  # fmt: skip
        url = f"http://{HOST}:{self.ports['dashboard']}/api/version"
        self._await("Ray", lambda: status(url, self.secrets["ray"]) == 200)

    def worker(self, number: int, cpus: int = 1) -> None:
        """One more machine: a raylet of its own."""
        self._ray(
            f"worker-{number}", "--address", f"{HOST}:{self.ports['gcs']}", "--num-cpus", str(cpus)
        )

    def nodes(self) -> list[dict[str, str]]:
        """The nodes that the head counts as alive."""
        url = f"http://{HOST}:{self.ports['dashboard']}/api/v0/nodes"
        request = urllib.request.Request(
            url, headers={"Authorization": f"Bearer {self.secrets['ray']}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]["result"]
        return [node for node in found if node["state"] == "ALIVE"]

    # helpers

    def _ray(self, name: str, *arguments: str) -> None:
        """A raylet with a folder of its own, as if on a machine of its own."""
        folder = Path(self.ray_folder) / name  # short: Ray makes sockets below it
        memory = ["--object-store-memory", str(150 << 20)]
        node = Path(__file__).with_name("node.py")
        (agent,) = free_ports(1)  # the default is the same for every cluster of a machine
        own = ["--node-ip-address", HOST, "--dashboard-agent-listen-port", str(agent)]
        command = [sys.executable, str(node), "start", "--block", *own, *memory]
        self._start(name, [*command, "--temp-dir", str(folder), *arguments])

    def _start(
        self, name: str, command: list[str], more: Mapping[str, str] | None = None, **how: Any
    ) -> None:
        own = {"OMP_NUM_THREADS": "1", **_RAY_QUICK, "PATH": f"{_BIN}:{os.environ['PATH']}"}
        environment = self.environment() | own | dict(more or {})
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
    """Ports that are free now, below those that the system hands out by itself."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((HOST, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def status(url: str, token: str | None = None, **headers: str) -> int | None:
    """HTTP status of a GET; None if nobody answers."""
    request = urllib.request.Request(
        url, headers=headers | ({"Authorization": f"Bearer {token}"} if token else {})
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError:
        return None


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # if it is our child, let it go
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    """All processes below this one."""
    found, queue = list[int](), [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                found += children
                queue += children
    return found


def write_private(path: Path, text: str) -> Path:
    """A file that only this user can read."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path
