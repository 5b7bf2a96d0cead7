"""Each mathematical claim has a mutation that some test catches: the mutants are made here, and must not survive."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow

LANGEVIN, CD = "tests/statistical/test_langevin.py", "tests/statistical/test_contrastive_divergence.py"
MUTANTS = {  # what is broken: (file, right, wrong, the test that must notice)
    "sign of the score": ("energies/__init__.py", "gradient.neg_()", "gradient", LANGEVIN),
    "no noise": ("samplers/langevin.py", "alpha=config.noise_scale)", "alpha=0.0)", LANGEVIN),
    "noise in variance, not deviation": ("samplers/langevin.py", "alpha=config.noise_scale)", "alpha=config.noise_scale**2)", LANGEVIN),
    "half the drift": ("samplers/langevin.py", "alpha=config.step_size)", "alpha=config.step_size / 2)", LANGEVIN),
    "no clamp": ("samplers/langevin.py", "x.clamp_(*bounds)", "pass", LANGEVIN),
    "one noise for all chains": ("samplers/langevin.py", "torch.randn(x.shape,", "torch.randn(x.shape[1:],", LANGEVIN),
    "wrong temperature": ("samplers/langevin.py", "/ (2 * self.step_size)", "/ self.step_size", LANGEVIN),
    "sign of the loss": ("objectives/contrastive_divergence.py", "loss = mean_pos - mean_neg", "loss = mean_neg - mean_pos", CD),
    "half the penalty": ("objectives/contrastive_divergence.py", "self.config.energy_penalty * penalty", "self.config.energy_penalty * penalty / 2", CD),
    "chains are not kept": ("objectives/contrastive_divergence.py", "context.replay.put(draw, negative)", "pass", CD),
    "wrong labels are the right ones": ("objectives/contrastive_divergence.py", "(batch.y + k) % num_classes", "(batch.y + k + 1) % num_classes", CD),
    "temperature of labels twice": ("objectives/contrastive_divergence.py", "n).T / temperature  #", "n).T  #", CD),
    "gradient flows through the chain": ("objectives/contrastive_divergence.py", "len(shifts), negative])", "len(shifts), positive])", CD),
    "burn-in counts": ("objectives/contrastive_divergence.py", "(draw.age >= self.config.burn_in)", "(draw.age >= 0)", CD),
    "left out, but divided by": ("objectives/contrastive_divergence.py", "counts.sum().clamp(min=1)", "n", CD),
    "nothing is turned": ("augmentation.py", "uniform(math.pi)", "uniform(0.0)", "tests/unit/test_augmentation.py"),
    "nothing is mirrored": ("augmentation.py", "uniform(1.0) < 0, -1.0, 1.0)", "uniform(1.0) < 9, 1.0, 1.0)", "tests/unit/test_augmentation.py"),
    "every chain is turned": ("augmentation.py", ".div(2) < prob", ".div(2) < 1", "tests/unit/test_augmentation.py"),
    "classes have constants": ("model.py", "torch.full((len(x),), k)) - mean", "torch.full((len(x),), k))", "tests/unit/test_reports.py"),
    "no age is too old": ("replay.py", "restart |= self.age[slots] >= self.max_age", "pass", "tests/unit/test_replay.py"),
    "every shard has the same stream": ("rng.py", "{seed}/{purpose}/{shard}/{step}", "{seed}/{purpose}/{step}", "tests/integration/test_trainer.py::test_logical_shards_differ"),
    "every step has the same stream": ("rng.py", "{seed}/{purpose}/{shard}/{step}", "{seed}/{purpose}/{shard}", "tests/unit/test_rng.py"),
    "32-bit seeds": ("rng.py", "return generator.set_state(state)", "return generator.manual_seed(seed & 0xFFFFFFFF)", "tests/unit/test_rng.py"),
    "gradients are not averaged": ("comm.py", "total.div_(self.num_shards)", "total", CD),
    "restarts keep their age": ("replay.py", "torch.where(restart, 0, self.age[slots])", "self.age[slots]", "tests/unit/test_replay.py"),
    "Frechet without the shift": ("features.py", "float(shift @ shift +", "float(0 +", "tests/unit/test_scores.py"),
    "ties count nothing": ("evaluation/ood.py", "below + theirs / 2", "below", "tests/unit/test_scores.py"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_does_not_survive(name, tmp_path):
    file, right, wrong, test = MUTANTS[name]
    for folder in ("ebm_dist", "pipelines", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    source = (tmp_path / "ebm_dist" / file).read_text()
    assert source.count(right) == 1, f"{file}: {right!r} is there {source.count(right)} times; mend this table"
    (tmp_path / "ebm_dist" / file).write_text(source.replace(right, wrong))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"{name} survived {test}:\n{done.stdout[-2000:]}"
