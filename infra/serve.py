"""Serve the champion of a registered model on Ray Serve: ``python infra/serve.py ebm-digits``.

A request is ``POST /`` with ``{"inputs": samples, "params": {"task": "sample", ...}}``, as for the
MLflow server; the answer is ``{"predictions": ...}``, and ``classes`` with the names of the classes
if it has any. See ebm_dist/models/requests.py. A wrong request gets status 400 and a message that
says what was expected. ``MLFLOW_TRACKING_URI`` and ``RAY_ADDRESS`` name the servers; without
``RAY_ADDRESS`` Ray starts on this machine. Needs ``pip install 'ebm-dist[serve]'``.
"""

import argparse
import json
import signal
import threading
from pathlib import Path

import mlflow
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from ebm_dist import models
from ebm_dist.errors import RequestError
from ebm_dist.models import requests
from ebm_dist.runs import tracking

_MAX_REQUEST_BYTES = 64 << 20


@serve.deployment
class Champion:
    """Answer requests with the model of a folder."""

    def __init__(self, folder: str) -> None:
        self.model = models.load(Path(folder))

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method != "POST":
            return JSONResponse(
                {
                    "tasks": list(requests.TASKS),
                    "shape": list(self.model.card["shape"]),
                    "classes": list(self.model.class_names),
                }
            )
        if int(request.headers.get("content-length", 0)) > _MAX_REQUEST_BYTES:
            limit = _MAX_REQUEST_BYTES >> 20
            return JSONResponse({"error": f"at most {limit} MiB a request"}, 413)
        try:
            body = json.loads(await request.body())
            if (
                not isinstance(body, dict)
                or not set(body) <= {"inputs", "params"}
                or "inputs" not in body
            ):
                raise RequestError('expected {"inputs": samples, "params": {...}}')
            if not isinstance(body.get("params") or {}, dict):
                raise RequestError("params must be an object")
            answer = requests.answer(self.model, body["inputs"], body.get("params"))
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": f"not JSON: {error}"}, 400)
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 400)
        names = requests.class_names(self.model, len(answer), body.get("params"))
        classes = {"classes": list(names)} if names else {}
        return JSONResponse({"predictions": answer.tolist(), **classes})


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="name of the registered model")
    options.add_argument(
        "--alias", default="champion", help="alias of the version (default: champion)"
    )
    options.add_argument("--replicas", type=int, default=1, help="number of processes (default: 1)")
    options.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    options.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    args = options.parse_args()
    mlflow.set_tracking_uri(tracking.tracking_uri())
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{args.name}@{args.alias}"))
    (card,) = folder.rglob("model.json")
    ray.init(logging_level="warning")
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(Champion.options(num_replicas=args.replicas).bind(str(card.parent)), name=args.name)
    print(f"{args.name}@{args.alias} answers at http://{args.host}:{args.port}/", flush=True)
    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
