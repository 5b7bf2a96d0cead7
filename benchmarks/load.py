"""Load the served champion: 2,000 requests of 50 kinds, 8 at a time, on each of both servers.

    python -m benchmarks.load ebm-digits      # a registered model with a champion

Kinds are small, medium or large by the work that ``ebm_dist.models.requests`` counts, or must be
refused. Prints the answers by status, quantiles of the latency, and the longest time of a small
request that was sent beside a large one. Takes some ten minutes for each server on two cores.
Writes reports/benchmarks/load.json. Exits with code 1 after a status 5xx, a wrong status, or a
small request that took longer than two seconds.
"""

import argparse
import itertools
import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks import circumstances
from benchmarks.serving import ROOT, registered_shape, served
from ebm_dist.files import write_json
from ebm_dist.models import requests

CLIENTS, LONGEST_SECONDS = 8, 2.0
SHOW_EVERY_S = 15.0
SIZES = ("small", "medium", "large", "refused")


class Kind(NamedTuple):
    """One kind of request."""

    name: str
    size: str
    """One of ``SIZES``"""
    body: bytes


class Answer(NamedTuple):
    """One request, and when it was sent and answered."""

    kind: Kind
    status: int
    retries: int
    """How often the server was busy (429)"""
    sent: float
    answered: float


def kinds(shape: Sequence[int]) -> list[Kind]:
    """Return 50 kinds of requests about images of a shape, with values in [0, 1]."""
    shape = list(shape)
    values = int(np.prod(shape))
    valid = [
        *(("energy", n, 1, {}) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
        *(("sample", n, steps, {}) for n in (1, 4, 16) for steps in (1, 10, 50, 100)),
        *(("complete", n, steps, {"hidden_rows": 2}) for n in (1, 8) for steps in (1, 20, 100)),
        *(("sample", n, steps, {}) for n, steps in ((64, 150), (128, 100), (256, 100))),
        ("complete", 100, 100, {}),
    ]
    draws = np.random.default_rng(0)
    made = []
    for task, n, steps, options in valid:
        size = "small" if n * steps * values <= requests.SMALL_WORK else "medium"
        params = {"task": task, **({} if task == "energy" else {"num_steps": steps}), **options}
        name = f"{task} {n} samples" + ("" if task == "energy" else f" {steps} steps")
        made.append(Kind(name, size, _body(draws.random((n, *shape)).round(4).tolist(), params)))
    for share, n in ((0.4, 64), (0.7, 16), (1.0, 500)):
        steps = int(requests.MAX_WORK * share) // (n * values)
        params = {"task": "sample", "num_steps": steps}
        name = f"sample {n} samples {steps} steps"
        made.append(Kind(name, "large", _body([_image(shape, 0.5)] * n, params)))
    image = _image(shape, 0.5)
    wrong: dict[str, tuple[Any, Any]] = {
        "too much work": ([image] * 1000, {"task": "sample", "num_steps": 10000}),
        "too many steps": ([image], {"task": "sample", "num_steps": 10001}),
        "no steps": ([image], {"task": "sample", "num_steps": 0}),
        "unknown task": ([image], {"task": "dream"}),
        "no text as task": ([image], {"task": 3}),
        "text as steps": ([image], {"task": "sample", "num_steps": "many"}),
        "hidden rows": ([image], {"task": "complete", "hidden_rows": 10**6}),
        "another shape": ([image[0]], {}),
        "ragged": ([image, image[0]], {}),
        "text": (["x"], {}),
        "null": ([_image(shape, None)], {}),
        "no samples": ([], {}),
        "3e38": ([_image(shape, 3e38)], {}),
        "parameters no object": ([image], [1]),
    }
    made += [Kind(name, "refused", _body(*content)) for name, content in wrong.items()]
    made.append(Kind("cut off", "refused", _body([image], {})[:-9]))
    assert len(made) == 50, len(made)
    return made


def _image(shape: Sequence[int], value: float | None) -> list[Any]:
    return np.full(shape, value, dtype=object).tolist()


def _body(inputs: Any, params: Any) -> bytes:
    return json.dumps({"inputs": inputs, "params": params}).encode()


def send(url: str, kind: Kind) -> Answer:
    """Send a request, again after status 429, and read its answer."""
    request = urllib.request.Request(url, kind.body, {"Content-Type": "application/json"})
    sent = time.perf_counter()
    for retries in itertools.count():
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                status = answer.status
                json.loads(answer.read(), parse_constant=_refuse)
        except urllib.error.HTTPError as refused:
            status = refused.code
            refused.read()
        if status != 429:
            return Answer(kind, status, retries, sent, time.perf_counter())
        time.sleep(0.2)
    raise AssertionError


def send_all(server: str, url: str, order: Sequence[Kind]) -> list[Answer]:
    """Send requests, ``CLIENTS`` at a time, and show how many are answered."""
    answers, shown = list[Answer](), time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(partial(send, url), order):
            answers.append(answer)
            if time.monotonic() - shown > SHOW_EVERY_S:
                shown = time.monotonic()
                print(f"{server}: {len(answers)} of {len(order)}", file=sys.stderr, flush=True)
    return answers


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return counts of statuses, and quantiles of the seconds by size."""
    larges = [answer for answer in answers if answer.kind.size == "large"]
    beside = [
        answer.answered - answer.sent
        for answer in answers
        if answer.kind.size == "small"
        and any(large.sent < answer.answered and answer.sent < large.answered for large in larges)
    ]
    seconds = {}
    for size in SIZES:
        times = [a.answered - a.sent for a in answers if a.kind.size == size]
        seconds[size] = {
            "requests": len(times),
            **{f"p{q}": float(np.quantile(times, q / 100)) for q in (50, 95, 99)},
            "max": max(times),
        }
    wrong = Counter(
        f"{a.kind.name}: {a.status}"
        for a in answers
        if not (a.status == 200 if a.kind.size != "refused" else 400 <= a.status < 500)
    )
    return {
        "statuses": {str(key): n for key, n in sorted(Counter(a.status for a in answers).items())},
        "num_429": sum(answer.retries for answer in answers),
        "num_5xx": sum(a.status >= 500 for a in answers),
        "wrong": dict(wrong),
        "seconds": seconds,
        "num_small_beside_large": len(beside),
        "longest_small_beside_large": max(beside, default=0.0),
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("name", help="name of the registered model")
    options.add_argument("--requests", type=int, default=2000, help="of each server")
    options.add_argument("--seed", type=int, default=0, help="of the order (default: 0)")
    args = options.parse_args()
    every = kinds(registered_shape(args.name))
    order = [every[i % len(every)] for i in range(args.requests)]
    random.Random(args.seed).shuffle(order)
    results = {}
    with served(args.name) as urls:
        for server, url in urls.items():
            for kind in every:  # warm-up: the first call of each kind builds caches
                if kind.size in ("small", "refused"):
                    send(url, kind)
            results[server] = summary(send_all(server, url, order))
            print(table(server, results[server]), flush=True)
    write_json(
        ROOT / "reports/benchmarks/load.json",
        {"model": args.name, "requests": args.requests, "clients": CLIENTS, "servers": results}
        | circumstances(),
    )
    raise SystemExit(
        any(
            result["wrong"] or result["longest_small_beside_large"] > LONGEST_SECONDS
            for result in results.values()
        )
    )


def table(server: str, result: dict[str, Any]) -> str:
    """Return the summary of a server in Markdown."""
    lines = [f"| {server} | requests | p50 s | p95 s | p99 s | longest s |", "|" + "---|" * 6]
    for size, row in result["seconds"].items():
        cells = " | ".join(f"{row[key]:.3f}" for key in ("p50", "p95", "p99", "max"))
        lines.append(f"| {size} | {row['requests']} | {cells} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Status {result['statuses']}; 5xx: {result['num_5xx']}; 429, asked"
            f" again: {result['num_429']}; wrong: {result['wrong']};"
            f" longest of {result['num_small_beside_large']} small requests beside a large one:"
            f" {result['longest_small_beside_large']:.2f} s.",
        ]
    )


if __name__ == "__main__":
    main()
