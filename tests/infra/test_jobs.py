"""What a job tells the cluster about how the pipeline ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("echo fine", 0)])
def test_a_pipeline_ends_with_the_exit_code_of_its_stage(tmp_path, monkeypatch, command, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run(["dvc", "init", "--no-scm", "-q"], check=True)
    Path("dvc.yaml").write_text(f"stages: {{one: {{cmd: '{command}'}}}}\n")
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from infra.repro import repro; sys.exit(repro())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Running stage 'one'" in done.stdout
