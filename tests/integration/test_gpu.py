"""On a GPU: the family, fast chains and the reductions there. All of it is skipped where there is none."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ebm_dist import config, models
from ebm_dist.chains.compiled import CompiledChains
from ebm_dist.chains.eager import Chains
from ebm_dist.chains.replay import ReplayShard
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.energies import convnet, mlp, resnet
from ebm_dist.rng import stream
from ebm_dist.samplers import langevin, noise
from ebm_dist.training import trainer
from ebm_dist.training.reduce import DDP, LocalComm, Ordered, TorchComm
from tests import helpers

GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
FAMILY = (
    "digits", "igebm-mnist-conditional", "igebm-cifar10-ood-bands", "igebm-cifar10", "continual-split-mnist", "rbm-mnist",
    "rbm-mnist-exact", "meg-25gaussians", "meg-stackedmnist", "nce-2d", "fce-8gaussians", "semi-spirals",
)  # fmt: skip
NETWORKS = {
    "mlp": lambda: mlp.build(mlp.Config(hidden=(128, 128)), shape=(3, 16, 16), num_classes=5),
    "convnet": lambda: convnet.build(
        convnet.Config(channels=(16, 32), hidden=16), shape=(3, 16, 16), num_classes=5
    ),
    "resnet": lambda: resnet.build(
        resnet.Config(channels=(32, 64)), shape=(3, 16, 16), num_classes=5
    ),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32 and not in TF32, which PyTorch takes for them as a rule."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def settings(recipe, tmp_path):
    """A recipe on data that can be made here, small."""
    values, _ = config.read(helpers.ROOT / f"pipelines/recipes/{recipe}.yaml")
    if values["dataset"]["name"] not in ("digits", "toy2d", "few_labels"):
        shape = (80, 32, 32, 3) if "cifar10" in recipe or "stacked" in recipe else (80, 28, 28)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.savez(tmp_path / "images.npz", images=images, labels=np.arange(80) % 10)
        values["dataset"] = {"name": "arrays", "path": str(tmp_path / "images.npz")}
    values |= {"evaluation": {"histogram": {}}, "register": {"model": "ebm-test"}}
    values |= {"replay": values.get("replay", {}) | {"capacity": 32}, "cluster": {"workers": 1}}
    num_tasks = values["train"].get("num_tasks", 1)
    values["train"] |= {
        "num_steps": 2 * num_tasks,
        "batch_size": 16,
        "num_shards": 2,
        "reduce": "ordered",
        "max_energy": 1e9,
    }
    objective = values.get("objective", {})
    for part in (objective, objective.get("unsupervised", {})):
        if "pretraining" in part or part.get("name") == "noise_contrastive":
            part["pretraining"] = min(part.get("pretraining", 1), 1)
    values["train"] |= {"checkpoint_every": 1, "log_every": 1, "compile": False}
    return values


@pytest.mark.parametrize("recipe", FAMILY)
def test_every_family_trains_and_goes_on_from_its_checkpoint(recipe, tmp_path):
    params = config.from_values(settings(recipe, tmp_path), tmp_path)
    index = shards.write(tmp_path / "data", "data", module_of(params.dataset).load(params.dataset))
    own, reporter = (
        (trainer.build(params, index, LocalComm(), GPU, "digest") for _ in range(2)),
        helpers.Silent(),
    )
    first, second = own
    assert first.fit(tmp_path / "run", reporter) == params.train.num_steps == len(reporter.rows)
    assert second.restore(tmp_path / "run")
    for name, player in first.objective.players.items():
        assert {parameter.device.type for parameter in player.parameters()} == {GPU.type}
        for key, value in player.state_dict().items():
            assert torch.equal(value, second.objective.players[name].state_dict()[key]), key
    for shard, chains in first.replay.items():
        assert chains.position.device.type == GPU.type and torch.equal(
            chains.position, second.replay[shard].position
        )
    second.step = 0
    second.advance()


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_chains_are_the_plain_ones(name):
    torch.manual_seed(1)
    own = NETWORKS[name]().to(GPU)
    kernel = langevin.build(
        langevin.Config(step_size=2.0, noise_scale=0.02, score_clip=0.03), bounds=(0.0, 1.0)
    )
    labels = torch.arange(8, device=GPU) % 5

    def ends(chains):
        return chains(
            noise((8, 3, 16, 16), (0.0, 1.0), stream(0, "start", device=GPU)),
            labels,
            stream(0, "chain", device=GPU),
        )

    plain, told = ends(Chains(own, kernel, 20))
    for compiles in (False, True):
        chains = CompiledChains(own, kernel, 20, compiles=compiles, precision="float32")
        for _ in range(2):  # at first a graph is recorded, then replayed
            end, told_too = ends(chains)
            torch.testing.assert_close(end, plain, rtol=0, atol=1e-4)
            torch.testing.assert_close(
                torch.stack(told_too), torch.stack([t.to(GPU) for t in told]), rtol=1e-3, atol=1e-4
            )
        assert chains.several is not chains._steps or not compiles, "was not compiled"
    half, _ = ends(CompiledChains(own, kernel, 20, compiles=True, precision="bfloat16"))
    assert half.dtype == torch.float32 and 0 < (half - plain).abs().mean() < 0.01


def test_compiled_chains_follow_the_weights():
    torch.manual_seed(1)
    own = NETWORKS["resnet"]().to(GPU)
    kernel = langevin.build(langevin.Config(step_size=2.0, noise_scale=0.0), bounds=(0.0, 1.0))
    start, labels = (
        noise((8, 3, 16, 16), (0.0, 1.0), stream(0, "start", device=GPU)),
        torch.zeros(8, dtype=torch.long, device=GPU),
    )
    chains = CompiledChains(own, kernel, 6, compiles=True, precision="float32")
    before = chains(start, labels, stream(0, "chain", device=GPU))[0]
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.05)
    after = chains(start, labels, stream(0, "chain", device=GPU))[0]
    plain = Chains(own, kernel, 6)(start, labels, stream(0, "chain", device=GPU))[0]
    torch.testing.assert_close(after, plain, rtol=0, atol=1e-4)
    assert not torch.equal(before, after)


def test_streams_are_addressed():
    def draw(*address):
        return torch.rand(5, generator=stream(*address, device=GPU), device=GPU)

    assert torch.equal(draw(0, "chain", 1, 2), draw(0, "chain", 1, 2))
    for other in ((1, "chain", 1, 2), (0, "chains", 1, 2), (0, "chain", 2, 2), (0, "chain", 1, 3)):
        assert not torch.equal(draw(0, "chain", 1, 2), draw(*other))


def test_nccl_speaks_for_one_rank_and_both_reductions_have_the_same_gradient(tmp_path):
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        comm = TorchComm(GPU)
        assert comm.agree(2) == 2 and comm.agree(True)
        for rows in (torch.arange(6.0).view(3, 2), torch.arange(6.0, device=GPU).view(3, 2)):
            assert torch.equal(comm.gather(rows, 3), rows)
        torch.manual_seed(1)
        players = {"energy": NETWORKS["resnet"]().to(GPU)}
        x, y = torch.rand(8, 3, 16, 16, device=GPU), torch.arange(8, device=GPU) % 5
        found = []
        for way in (Ordered, DDP):
            reduction = way(players, comm, 2)
            found.append(
                reduction.gradient(
                    "energy",
                    [reduction.players["energy"](x[i::2], y[i::2]).mean() for i in range(2)],
                )
            )
        torch.testing.assert_close(*found)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ray_trains_on_a_gpu_and_goes_on(tmp_path):
    values = settings("igebm-cifar10", tmp_path)
    values["energy"] = {"name": "resnet", "channels": [32, 32]}
    values["train"] |= {"reduce": "ddp", "compile": True, "num_shards": 2}
    values["train"] |= {"precision": "bfloat16", "update_precision": "bfloat16"}
    values |= {"cluster": {"workers": 1, "use_gpu": True}, "comparison_datasets": {}}
    (tmp_path / "params.yaml").write_text(json.dumps(values))
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    where = {"data": "data", "out": "model", "report": "report", "runs": "runs"}
    for stage, names in (("prepare", {"out": "data"}), ("train", where), ("train", where)):
        paths = [
            word for name, path in names.items() for word in (f"--{name}", str(tmp_path / path))
        ]
        command = [
            sys.executable,
            "-m",
            f"pipelines.{stage}",
            "--params",
            str(tmp_path / "params.yaml"),
            *paths,
        ]
        subprocess.run(command, cwd=helpers.ROOT, env=environment, check=True, timeout=280)
    assert json.loads((tmp_path / "report/metrics.json").read_text())["step"] == 2
    trained, x, y = models.load(tmp_path / "model"), torch.rand(4, 3, 32, 32), torch.arange(4)
    assert trained.energy(x, y).device.type == "cpu"
    torch.testing.assert_close(
        trained.energy(x, y),
        copy.deepcopy(trained.energy.network).cpu()(x, y),
        rtol=1e-3,
        atol=1e-4,
    )


def test_chains_on_the_host_are_page_locked_and_move_on_the_gpu():
    chains = ReplayShard(
        3000, (2,), (0.0, 1.0), range(1), stream(0, "chains", device=GPU), on_host=True
    )
    draw = chains.draw(16, 0.1, stream(0, "replay", device=GPU))
    chains.put(draw, draw.position + 2)
    assert chains.position.is_pinned() and draw.position.device.type == "cuda"
    assert int((chains.position.sum(dim=1) >= 4).sum()) == 16
