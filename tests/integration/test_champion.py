"""What a registered champion is for, beyond the main job's own tests: made again to the same bits, and served by Ray Serve."""

import contextlib
import http.client
import json
import signal
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from ebm_dist import models
from ebm_dist.data import shards
from tests import pages
from tests.integration.test_main_job import finish, kill, start, undisturbed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def test_the_champion_is_made_again_to_the_same_bits(done):
    folder, _ = done
    script = "from ebm_dist.cli.commands import main; main()"
    code, output = finish(
        folder, sys.executable, "-c", script, "reproduce", "models:/ebm-digits@champion"
    )
    assert code == 0 and "the same bytes" in output and "the same bits" in output, output
    code, output = finish(folder, sys.executable, "-c", script, "reproduce", "models:/ebm-digits/7")
    assert code == 7 and "Traceback" not in output and "see ebm-dist doctor" in output
    code, output = finish(folder, sys.executable, "-c", script, "history", "ebm-digits")
    assert code == 0 and "ood.uniform.auroc" in output and ">= 0.5 pass" in output, output


def test_ray_serve_answers_as_mlflow_does(done):
    folder, _ = done
    port = pages.free_port()
    process = start(folder, sys.executable, "infra/serve.py", "ebm-digits", "--port", port)

    def ask(body: bytes) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/", body), timeout=60
            ) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refused:
            return refused.code, json.loads(refused.read())

    try:
        pages.wait_for(lambda: pages.answers(f"http://127.0.0.1:{port}"))
        trained = models.load(folder / "model/energy")
        x = shards.read_split(shards.read_index(folder / "data/main/dataset"), "test")[0][:3]
        status, answer = ask(json.dumps({"inputs": x.tolist()}).encode())
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], trained.energies(x).numpy(), rtol=1e-5)
        status, answer = ask(
            json.dumps(
                {"inputs": x.tolist(), "params": {"task": "sample", "num_steps": 5}}
            ).encode()
        )
        assert status == 200 and np.shape(answer["predictions"]) == (3, 1, 8, 8)
        for wrong in (
            "x",
            "[1]",
            "{}",
            '{"inputs": [[0]]}',
            '{"inputs": [], "params": 3}',
            '{"inputs": [[NaN]]}',
            '{"inputs": 1, "more": 2}',
            json.dumps({"inputs": np.full((1, 1, 8, 8), 3e38).tolist()}),
            json.dumps(
                {
                    "inputs": x[:1].expand(1000, 1, 8, 8).tolist(),
                    "params": {"task": "sample", "num_steps": 10000},
                }
            ),
        ):
            status, answer = ask(wrong.encode())
            assert status == 400 and answer["error"], wrong[:100]
        # a body that never ends: the answer comes after 8 MiB
        sender = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
        sender.putrequest("POST", "/")
        sender.putheader("Transfer-Encoding", "chunked")
        sender.endheaders()
        part = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(9):
                sender.send(part)
        assert sender.getresponse().status == 413
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        kill(process)
