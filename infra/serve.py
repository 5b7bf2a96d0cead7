"""Serve the champion of a registered model on Ray Serve: ``python infra/serve.py ebm-digits``.

Another version by its address, such as ``models:/ebm-digits/3``.

A request is ``POST /`` with ``{"inputs": samples, "params": {"task": "sample", ...}}``, as for the
MLflow server; the answer is ``{"predictions": ...}``, and ``classes`` with the names of the classes
if it has any. See ebm_dist/models/requests.py. A wrong request gets status 400 and a message that
says what was expected, one of more than 8 MiB status 413, and one that comes beside too many large
ones status 429. ``GET /`` returns the tasks, the shape of a sample, the classes and the limits.
``MLFLOW_TRACKING_URI`` and ``RAY_ADDRESS`` name the servers; without ``RAY_ADDRESS`` Ray starts on
this machine. Needs ``pip install 'ebm-dist[serve]'``.
"""

import argparse
import asyncio
import json
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from ebm_dist import models
from ebm_dist.errors import BusyError, RequestError
from ebm_dist.models import requests
from ebm_dist.runs import tracking

MAX_BYTES = 8 << 20  # of a body: reading it as JSON stops all other threads for about 0.2 s
_MAX_REQUESTS, _MAX_LARGE = 32, 24  # of a replica at a time
_TIMEOUT_SECONDS = 300


class TooLong(RequestError):
    """A body has more bytes than the server reads: HTTP status 413."""


_STATUS: dict[type, int] = {TooLong: 413, BusyError: 429}  # of other wrong requests: 400


# Each request has a thread, so that a small one is computed beside large ones.
@serve.deployment(max_ongoing_requests=_MAX_REQUESTS)
class Champion:
    """Answer requests with the model of a folder."""

    def __init__(self, folder: str, max_work: int = requests.MAX_WORK) -> None:
        self.model = models.load(Path(folder))
        self.limits = requests.Limits(max_work, _MAX_LARGE)
        self.threads = ThreadPoolExecutor(_MAX_REQUESTS)

    async def __call__(self, request: Request) -> Response:
        if request.method != "POST":
            card = {
                "shape": list(self.model.card["shape"]),
                "classes": list(self.model.class_names),
            }
            limits = {"max_bytes": MAX_BYTES, "max_work": self.limits.max_work}
            return _json({"tasks": list(requests.TASKS)} | card | limits)
        try:
            body = await _read(request)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.threads, self._answer, body)
        except RequestError as error:
            return _json({"error": str(error)}, _STATUS.get(type(error), 400))

    def _answer(self, body: bytes) -> Response:
        """Return the answer as JSON. Raise :class:`RequestError`."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"not JSON: {error}") from None
        if not isinstance(content, dict) or not {"inputs"} <= set(content) <= {"inputs", "params"}:
            raise RequestError('expected {"inputs": samples, "params": {...}}')
        params = content.get("params")
        if not isinstance(params, dict | None):
            raise RequestError("params must be an object")
        samples = content.pop("inputs")
        answer = requests.answer(self.model, samples, params, self.limits)
        names = requests.class_names(self.model, len(answer), params)
        classes = {"classes": list(names)} if names else {}
        return _json({"predictions": answer.tolist(), **classes})


def _json(content: Any, status: int = 200) -> Response:
    """Return a response in ASCII: an error may quote text that has no UTF-8."""
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


async def _read(request: Request) -> bytes:
    """Return the body; raise :class:`TooLong` as soon as it is longer than ``MAX_BYTES``."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            raise TooLong(f"at most {MAX_BYTES >> 20} MiB a request", "split the samples")
    return bytes(body)


def address(name: str, alias: str) -> str:
    """Return the address of a model that is given by its name or its address."""
    return name if name.startswith("models:/") else f"models:/{name}@{alias}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="name of the registered model, or models:/NAME/VERSION")
    options.add_argument(
        "--alias", default="champion", help="alias of the version (default: champion)"
    )
    options.add_argument("--replicas", type=int, default=1, help="number of processes (default: 1)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    options.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    options.add_argument(
        "--max-work",
        type=int,
        default=requests.MAX_WORK,
        help="samples x steps x values per sample of a request (default: %(default)s)",
    )
    args = options.parse_args()
    mlflow.set_tracking_uri(tracking.tracking_uri())
    model = address(args.name, args.alias)
    folder = Path(mlflow.artifacts.download_artifacts(model))
    (card,) = folder.rglob("model.json")
    ray.init(logging_level="warning")
    serve.start(
        http_options={
            "host": args.host,
            "port": args.port,
            "request_timeout_s": _TIMEOUT_SECONDS,
        }
    )
    champion = Champion.options(num_replicas=args.replicas)
    serve.run(champion.bind(str(card.parent), args.max_work), name=re.split("[/@]", model)[1])
    print(f"{model} answers at http://{args.host}:{args.port}/", flush=True)
    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
