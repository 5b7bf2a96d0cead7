"""The server on Ray Serve, without Ray: its limits, and small requests beside a large one."""

import asyncio
import json
import threading
import time

import numpy as np
import pytest
from starlette.requests import Request

from ebm_dist.energies import EnergyModel
from ebm_dist.errors import BusyError
from ebm_dist.models import requests
from infra import serve
from tests import helpers
from tests.helpers import Silent

IMAGE = np.full((1, 8, 8), 0.5).tolist()


@pytest.fixture(scope="module")
def champion(tmp_path_factory, digits_data):
    folder, params = tmp_path_factory.mktemp("served"), helpers.params(train={"num_steps": 1})
    helpers.build(params, digits_data).fit(folder / "run", Silent())
    helpers.export(folder / "run", folder / "model", params, digits_data)
    return serve.Champion.func_or_class(str(folder / "model"))


class Body:
    """A body that arrives in parts; counts what has been read."""

    def __init__(self, *parts):
        self.parts, self.num_read = iter(parts), 0

    async def __call__(self):
        part = next(self.parts, None)
        self.num_read += len(part or b"")
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}


def request(body, **headers):
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": listed}, body)


async def post(champion, content, params=None):
    body = json.dumps({"inputs": content, "params": params}).encode()
    response = await champion(request(Body(body)))
    return response.status_code, json.loads(response.body, parse_constant=pytest.fail)


def ask(champion, content, params=None):
    return asyncio.run(post(champion, content, params))


def test_a_body_without_a_length_is_refused_before_all_of_it_is_read(champion):
    body = Body(*[b" " * (1 << 20)] * 100)
    response = asyncio.run(champion(request(body)))
    assert response.status_code == 413 and b"at most 8 MiB" in response.body
    assert body.num_read == serve.MAX_BYTES + (1 << 20)
    body = Body(*[b" " * (1 << 20)] * 100)  # and one with a wrong length
    assert asyncio.run(champion(request(body, **{"content-length": "5"}))).status_code == 413


def test_work_is_limited_and_the_limit_named(champion):
    status, answer = ask(champion, [IMAGE] * 1000, {"task": "sample", "num_steps": 10000})
    assert status == 400 and "1000 samples x 10000 evaluations" in answer["error"]
    assert "= 640000000 is above the limit of this server, 10000000; ask for" in answer["error"]
    assert ask(champion, [IMAGE], {"task": "sample", "num_steps": 10})[0] == 200
    about = json.loads(asyncio.run(champion(Request({"type": "http", "method": "GET"}))).body)
    assert about["max_work"] == requests.MAX_WORK and about["max_bytes"] == serve.MAX_BYTES


class Held(EnergyModel):
    """An energy that is not computed for two samples before the event."""

    def __init__(self, network, event):
        super().__init__()
        self.network, self.event = network, event

    def forward(self, x, y=None):
        if len(x) == 2:
            self.event.wait(timeout=5)
        return self.network(x, y)


def test_a_small_request_is_answered_while_a_large_one_is_computed(champion, monkeypatch):
    event = threading.Event()
    held = champion.model._replace(energy=Held(champion.model.energy, event))
    monkeypatch.setattr(champion, "model", held)

    async def both():
        long = asyncio.create_task(post(champion, [IMAGE] * 2))
        await asyncio.sleep(0.1)
        short = await post(champion, [IMAGE])
        is_first = not long.done()
        event.set()
        return short[0], is_first, (await long)[0]

    assert asyncio.run(both()) == (200, True, 200)


def test_large_requests_take_turns_and_leave_threads_for_small_ones(champion):
    limits = requests.Limits(10**9, 2)
    order = []

    def enter(name, num_samples):
        with limits.admitted(num_samples, 1000, 1000):
            order.append(name)

    with limits.admitted(1, 1000, 1000):  # the first is computed
        second = threading.Thread(target=enter, args=("second", 1))
        second.start()
        while limits._places._value:  # until it waits
            time.sleep(0.001)
        with pytest.raises(BusyError, match="ask again later"):
            enter("third", 1)
        with limits.admitted(1, 1, 1):
            order.append("small")
        assert order == ["small"]
    second.join(timeout=10)
    assert order == ["small", "second"]


class Steep(EnergyModel):
    """An energy that overflows at large finite positions, as networks do."""

    def forward(self, x, y=None):
        return x.flatten(1).square().sum(dim=1)


@pytest.mark.parametrize("task", ["energy", "complete"])
def test_finite_values_whose_energies_overflow_are_refused(champion, monkeypatch, task):
    monkeypatch.setattr(champion, "model", champion.model._replace(energy=Steep()))
    status, answer = ask(champion, [np.full((1, 8, 8), 3e38).tolist()], {"task": task})
    assert status == 400 and answer["error"]
    assert ask(champion, [IMAGE], {"task": task})[0] == 200


def test_an_error_is_readable_whatever_it_quotes(champion):
    status, answer = ask(champion, [IMAGE], {"task": "\ud800" + "x" * 10**6})
    assert status == 400 and len(answer["error"]) < 200
    status, answer = ask(champion, [IMAGE], {"\ud800" * 1000: 1})
    assert status == 400 and len(answer["error"]) < 200
    assert ask(champion, [IMAGE], {"seed": 10**4000}) == (
        400,
        {"error": "seed must be an integer of 64 bits, found a longer one"},
    )


def test_a_model_is_given_by_its_name_or_its_address():
    assert serve.address("ebm-digits", "candidate") == "models:/ebm-digits@candidate"
    for address in ("models:/ebm-digits@champion", "models:/ebm-digits/3"):
        assert serve.address(address, "champion") == address
