"""Measure the latency of the MLflow server and of Ray Serve, with one and with four clients.

    python -m benchmarks.serving ebm-digits      # a registered model with a champion

Both answer the same requests in turn. Writes reports/benchmarks/serving.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import circumstances
from ebm_dist.files import write_json
from ebm_dist.runs import tracking
from tests import pages

ROOT = Path(__file__).resolve().parent.parent
REQUESTS, ROUNDS = 200, 3
SIZES, CLIENTS = (1, 64), (1, 4)


def ask(url: str, body: bytes) -> float:
    """Send a request; return the seconds until the answer is complete."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - began


def latencies(url: str, body: bytes, clients: int) -> list[float]:
    """Return the seconds of the requests of a round."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda _: ask(url, body), range(REQUESTS)))


def registered_shape(name: str) -> tuple[int, ...]:
    """Return the shape of a sample, by the metadata of the champion of a registered model."""
    import mlflow

    mlflow.set_tracking_uri(tracking.tracking_uri())
    version = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
    info = mlflow.models.get_model_info(f"models:/{name}/{version.version}")
    return tuple(info.metadata["input"]["shape"][1:])


@contextmanager
def served(name: str) -> Iterator[dict[str, str]]:
    """Serve the champion of a registered model by both servers; yield their addresses by name."""
    ports = pages.free_port(), pages.free_port()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking.tracking_uri(),
        "PYTHONPATH": str(ROOT),
    }
    champion = f"models:/{name}@champion"
    mlflow_server = ["mlflow", "models", "serve", "-m", champion, "--env-manager", "local"]
    ray_server = [sys.executable, "infra/serve.py", name]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    servers = [
        subprocess.Popen(argv, env=environment, cwd=ROOT, **quiet)
        for argv in ([*mlflow_server, "-p", ports[0]], [*ray_server, "--port", ports[1]])
    ]
    try:
        for port in ports:
            pages.wait_for(lambda port=port: pages.answers(f"http://127.0.0.1:{port}"))
        yield {
            "MLflow": f"http://127.0.0.1:{ports[0]}/invocations",
            "Ray Serve": f"http://127.0.0.1:{ports[1]}/",
        }
    finally:
        for server in servers:
            server.terminate()
            server.wait(timeout=60)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="name of the registered model")
    args = options.parse_args()
    shape = registered_shape(args.name)
    rows: list[dict[str, Any]] = []
    with served(args.name) as urls:
        for size in SIZES:
            body = json.dumps(
                {"inputs": np.random.default_rng(0).random((size, *shape)).round(4).tolist()}
            ).encode()
            for clients in CLIENTS:
                times: dict[str, list[float]] = {name: [] for name in urls}
                for _ in range(ROUNDS):
                    for name, url in urls.items():
                        times[name] += latencies(url, body, clients)
                for name, seconds in times.items():
                    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
                    row = {
                        "server": name,
                        "samples": size,
                        "clients": clients,
                        "requests": len(seconds),
                    }
                    rows.append(row | {"p50_ms": p50, "p99_ms": p99})
                    print(
                        f"{name:10} {size:3} samples, {clients} clients:"
                        f" p50 {p50:.1f} ms, p99 {p99:.1f} ms",
                        flush=True,
                    )
    write_json(
        ROOT / "reports/benchmarks/serving.json",
        {"model": args.name, "shape": list(shape), "rows": rows} | circumstances(),
    )


if __name__ == "__main__":
    main()
