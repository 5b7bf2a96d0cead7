"""Errors have two parts: what is wrong, and how to fix it."""

import pickle
import signal
import subprocess
import sys

import pytest

from ebm_dist import cli, errors
from ebm_dist.errors import ConfigError, DataError, EbmError, RegistryError, Stopped, redact


def test_the_text_is_both_parts():
    failed = DataError("data/x.npz: missing", "run 'dvc repro prepare'")
    assert (failed.what, failed.fix) == ("data/x.npz: missing", "run 'dvc repro prepare'")
    assert str(failed) == "data/x.npz: missing; run 'dvc repro prepare'"


def test_one_text_has_no_fix_even_with_a_semicolon():
    failed = ConfigError("one; two")
    assert (str(failed), failed.what, failed.fix) == ("one; two", "one; two", None)


@pytest.mark.parametrize("fix", [None, "do this"])
def test_the_parts_survive_the_way_from_a_worker(fix):
    failed = pickle.loads(pickle.dumps(ConfigError("wrong", fix)))
    assert type(failed) is ConfigError
    assert (failed.what, failed.fix, str(failed)) == ("wrong", fix, str(ConfigError("wrong", fix)))


def test_every_error_has_an_exit_code():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, EbmError)
    ]
    assert len(kinds) > 5 and all(0 < kind.exit_code < 256 for kind in kinds)


SECRETS = [
    ("http://ada:pw-X1@host:5000/path", "http://***@host:5000/path"),
    ("postgresql+psycopg2://ada:p@w-X1@host/db", "postgresql+psycopg2://***@host/db"),
    ("https://pw-X1@host", "https://***@host"),
    ("two: s3://a:pw-X1@b, mysql://c:pw-X1@d", "two: s3://***@b, mysql://***@d"),
    ("http://host/a?user=ada&password=pw-X1&n=1", "http://host/a?user=ada&password=***&n=1"),
    ("http://host/?X-Amz-Signature=pw-X1", "http://host/?X-Amz-Signature=***"),
    ("sqlite:///mlflow.db a@b.c", "sqlite:///mlflow.db a@b.c"),
    ("http://host/a@b?step=1", "http://host/a@b?step=1"),
]


@pytest.mark.parametrize(("text", "redacted"), SECRETS)
def test_secrets_are_left_out_of_every_message(text, redacted, capsys):
    assert redact(text) == redacted
    failed = RegistryError(f"{text} cannot be reached", f"start {text}")
    assert str(failed) == f"{redacted} cannot be reached; start {redacted}"
    assert str(pickle.loads(pickle.dumps(failed))) == str(failed)
    with pytest.raises(SystemExit):
        cli.run(lambda: (_ for _ in ()).throw(OSError(5, f"no answer of {text}")))
    assert capsys.readouterr().err.endswith(f"no answer of {redacted}\n")


def test_secrets_are_left_out_of_log_lines_and_of_doctor():
    """In a process of its own: logging is set up once."""
    script = """
import logging
from pathlib import Path
from ebm_dist import cli, config
from ebm_dist.cli import doctor
def main():
    logging.getLogger("mlflow").warning("lost %s", "postgresql://ada:pw-X1@host/db")
    for finding in doctor.examine(config.load("params.yaml"), Path("none")):
        if finding.check in ("tracking", "Ray cluster", "store"):
            print(finding.seen, finding.fix)
cli.run(main)
"""
    environment = {
        "MLFLOW_TRACKING_URI": "postgresql://ada:pw-X1@127.0.0.1:9/db",
        "RAY_ADDRESS": "ray://ada:pw-X1@127.0.0.1:9",
        "PATH": "/usr/bin",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert "pw-X1" not in done.stdout + done.stderr
    assert "WARNING: lost postgresql://***@host/db" in done.stderr
    assert "postgresql://***@127.0.0.1:9/db" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_a_signal_stops_has_the_signal_s_exit_code(number, code):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda: signal.raise_signal(number))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code
    assert Stopped("stopped", signal=number).exit_code == code
    assert Stopped("stopped").exit_code == 143
