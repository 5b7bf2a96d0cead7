"""Inputs of all kinds, at random; and that the fuzz notices what it looks for."""

import random
import subprocess
import sys
import time

import pytest

from ebm_dist.errors import DataError
from tests.helpers import ROOT
from tests.security import fuzz


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_input_ends_in_success_or_in_one_message():
    command = [sys.executable, "-m", "tests.security.fuzz", "--inputs", "5000", "--seed", "11"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "5000 of 5000 inputs" in done.stdout


def refuse():
    raise DataError("file: broken", "write it again")


def test_messages_pass_and_tracebacks_and_hangs_do_not(monkeypatch):
    assert fuzz.outcome(lambda: None) == "success"
    assert fuzz.outcome(refuse) == "exit code 4"
    with pytest.raises(ZeroDivisionError):
        fuzz.outcome(lambda: 1 / 0)
    with pytest.raises(fuzz.Fault, match="exit code 9"):
        fuzz.outcome(lambda: sys.exit(9))
    with pytest.raises(fuzz.Fault, match="without a message"):
        fuzz.outcome(lambda: sys.exit(4))
    monkeypatch.setattr(fuzz, "LONGEST_SECONDS", 0.05)
    with pytest.raises(fuzz.Hang):
        fuzz.outcome(lambda: time.sleep(5))


def test_a_file_outside_of_the_folder_is_noticed(tmp_path):
    (tmp_path / "inside").mkdir()
    before = fuzz.tree(tmp_path, tmp_path / "inside")
    (tmp_path / "inside/x").touch()
    assert fuzz.tree(tmp_path, tmp_path / "inside") == before
    (tmp_path / "y").touch()
    assert fuzz.tree(tmp_path, tmp_path / "inside") != before


def test_a_seed_and_a_number_name_an_input():
    value = {"a": [1, {"b": None}], "c": "x"}
    first, again, other = (fuzz.text_of(random.Random(s), value) for s in ("1/2", "1/2", "1/3"))
    assert first == again != other
