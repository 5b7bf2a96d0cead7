"""What a job tells the cluster about how the pipeline ended."""

import sys
from pathlib import Path

import pytest

from infra.repro import repro


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("echo fine", 0)])
def test_a_pipeline_ends_with_the_exit_code_of_its_stage(
    tmp_path, monkeypatch, capsys, command, code
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n")
    Path("dvc.yaml").write_text(f"stages: {{one: {{cmd: '{command}'}}}}\n")
    assert repro() == code
    assert "Running stage 'one'" in capsys.readouterr().out
