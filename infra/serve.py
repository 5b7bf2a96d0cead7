"""The champion of a registered model on Ray Serve: ``python infra/serve.py ebm-digits``, then ``POST /`` as to MLflow's server.

A request is ``{"inputs": samples, "params": {"task": "sample", ...}}``, the answer ``{"predictions": ...}``; see ebm_dist/models/requests.py.
What does not fit is status 400, with what was expected. MLflow is where ``MLFLOW_TRACKING_URI`` says, Ray where ``RAY_ADDRESS``
says, else here. Needs ``pip install 'ebm-dist[serve]'``.
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

_MOST_BYTES = 64 << 20  # of a request


@serve.deployment
class Champion:
    def __init__(self, folder: str) -> None:
        self.model = models.load(Path(folder))

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method != "POST":
            return JSONResponse(
                {"tasks": list(requests.TASKS), "shape": list(self.model.card["shape"])}
            )
        if int(request.headers.get("content-length", 0)) > _MOST_BYTES:
            return JSONResponse({"error": f"at most {_MOST_BYTES >> 20} MiB a request"}, 413)
        try:
            asked = json.loads(await request.body())
            if (
                not isinstance(asked, dict)
                or not set(asked) <= {"inputs", "params"}
                or "inputs" not in asked
            ):
                raise RequestError('expected {"inputs": samples, "params": {...}}')
            if not isinstance(asked.get("params") or {}, dict):
                raise RequestError("params must be an object")
            answer = requests.answer(self.model, asked["inputs"], asked.get("params"))
        except (ValueError, RecursionError) as failed:
            return JSONResponse({"error": f"not JSON: {failed}"}, 400)
        except RequestError as refused:
            return JSONResponse({"error": str(refused)}, 400)
        return JSONResponse({"predictions": answer.tolist()})


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="of the registered model")
    options.add_argument("--alias", default="champion", help="which version (default: champion)")
    options.add_argument(
        "--replicas", type=int, default=1, help="processes that answer (default: 1)"
    )
    options.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: this machine alone)"
    )
    options.add_argument("--port", type=int, default=8000, help="default: 8000")
    given = options.parse_args()
    mlflow.set_tracking_uri(tracking.tracking_uri())
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{given.name}@{given.alias}"))
    (card,) = fetched.rglob("model.json")
    ray.init(logging_level="warning")
    serve.start(http_options={"host": given.host, "port": given.port})
    serve.run(Champion.options(num_replicas=given.replicas).bind(str(card.parent)), name=given.name)
    print(f"{given.name}@{given.alias} answers at http://{given.host}:{given.port}/", flush=True)
    over = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    over.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
