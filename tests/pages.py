"""Servers and a real browser, for tests that look at pages."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest


def browser() -> str:
    """A headless Chromium; without one the test is skipped."""
    found = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    return found or pytest.skip("no Chromium here: apt-get install chromium")


def free_port() -> str:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return str(own.getsockname()[1])


def mlflow_server(folder: Path, port: str) -> list[str]:
    """The command of a server on the folder's database."""
    return [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--host", "127.0.0.1", "--port", port, "--workers", "1",
    ]  # fmt: skip


def wait_for(what, seconds=240.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def answers(address: str) -> bool:
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"{address}/health", timeout=2) as reply,
    ):
        return reply.status == 200
    return False


def post(address: str, call: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{call}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        return json.loads(reply.read())


def look(browser: str, page: str, picture: Path, profile: Path) -> str:
    """Open a page, keep a screenshot, return the document as it stands then."""
    options = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1400,900", "--virtual-time-budget=25000",
    )  # fmt: skip
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", f"--screenshot={picture}", "--dump-dom", page],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout
