"""Compare Langevin sampling and training steps with TorchEBM, ebmkit and the textbook loop.

    pip install -c constraints.txt -e '.[benchmarks]'
    python -m benchmarks.langevin
    python -m benchmarks.langevin --device cuda --out reports/benchmarks/gpu.json

All use the same networks and the same steps, and take turns in one process. A ratio is the median
over rounds of the time of the peer / our time. Before timing, the chains run with the same noise
and are compared. The share of the peak counts the operations of the plain algorithm, forward and
gradient by the positions. On a GPU our chains of images use bfloat16; the peers use float32 with
convolutions in TF32, the default of PyTorch. Writes reports/benchmarks/langevin.json and keeps the
rows of cases that were not run.
"""

import argparse
import copy
import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import circumstances, peak_gflops, take_turns, textbook
from ebm_dist import config
from ebm_dist.chains.compiled import CompiledChains
from ebm_dist.chains.eager import Chains, Precision
from ebm_dist.chains.replay import ReplayShard
from ebm_dist.energies import EnergyModel, convnet, mlp, resnet
from ebm_dist.files import read_json, write_json
from ebm_dist.objectives import contrastive_divergence
from ebm_dist.rng import stream
from ebm_dist.samplers import langevin, noise
from ebm_dist.training.reduce import LocalComm
from ebm_dist.training.trainer import Trainer

Sampling = Callable[[], object]


class Case(NamedTuple):
    """A network, its chains and the number of rounds."""

    name: str
    build: Callable[[], EnergyModel]
    shape: tuple[int, ...]
    num_classes: int
    num_chains: int
    sampler: langevin.Config
    bounds: tuple[float, float] | None
    rounds: int
    compiles: bool = True


TOY = langevin.Config(num_steps=100, step_size=0.01, noise_scale=math.sqrt(2 * 0.01))
COLD = langevin.Config(num_steps=60, step_size=10.0, noise_scale=0.005, score_clip=0.03)
WORKS = ("sampling", "training step")


def toy() -> EnergyModel:
    """Build the network of the 2-D cases."""
    return mlp.build(mlp.Config(hidden=(128, 128)), shape=(2,), num_classes=0)


CASES = [
    Case("2-D MLP", toy, (2,), 0, 1024, TOY, None, 61),
    Case("2-D MLP", toy, (2,), 0, 16384, TOY, None, 11),
    Case(
        "MNIST CNN",
        lambda: convnet.build(convnet.Config(), shape=(1, 28, 28), num_classes=0),
        (1, 28, 28),
        0,
        128,
        COLD,
        (0, 1),
        15,
    ),
    Case(
        "IGEBM net",
        lambda: resnet.build(resnet.Config(), shape=(3, 32, 32), num_classes=10),
        (3, 32, 32),
        10,
        32,
        langevin.Config(num_steps=20, step_size=10.0, noise_scale=0.005, score_clip=0.03),
        (0, 1),
        3,
    ),
]
ON_GPU = [
    *CASES[:3],
    CASES[3]._replace(num_chains=128, sampler=replace(COLD, score_clip=0.01), rounds=7),
]


def has(package: str) -> bool:
    """Return whether a peer is installed, by the name to import."""
    return importlib.util.find_spec(package) is not None


def torchebm_model(network: nn.Module) -> Any:
    """Return a network as a model of TorchEBM."""
    from torchebm.core import BaseModel

    class Wrapped(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            return self.network(x)

    return Wrapped()


class TorchEBM:
    """The 2-D network of standard layers under the sampler and the loss of TorchEBM."""

    def __init__(self, case: Case, network: nn.Module, device: str) -> None:
        from torchebm.losses import ContrastiveDivergence
        from torchebm.samplers import LangevinDynamics

        self.case, self.model, place = case, torchebm_model(network), torch.device(device)
        self.sampler = LangevinDynamics(
            self.model, step_size=case.sampler.step_size, noise_scale=1.0, device=place
        )
        self.loss = ContrastiveDivergence(
            self.model,
            self.sampler,
            k_steps=case.sampler.num_steps,
            persistent=True,
            buffer_size=8192,
            init_steps=0,
            device=place,
        )
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.0, 0.999))

    def sample(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Run the chains of the case from ``x (B, 2)``."""
        return self.sampler.sample(
            x=x.clone(), n_steps=self.case.sampler.num_steps, generator=generator
        )

    def step(self, x: Tensor) -> None:
        """Update the network on data ``x (B, 2)``."""
        self.optimizer.zero_grad()
        loss, _ = self.loss(x)
        loss.backward()
        self.optimizer.step()


class EbmKit:
    """A network of standard layers under the sampler of ebmkit."""

    def __init__(self, case: Case, network: nn.Module, y: Tensor | None) -> None:
        from ebm.samplers.langevin import LangevinDynamics

        self.energy = network if y is None else partial(self._conditional, network, y)
        self.sampler = LangevinDynamics(
            step_size=case.sampler.step_size,
            steps=case.sampler.num_steps,
            noise_scale=case.sampler.noise_scale,
            grad_clip=case.sampler.score_clip,
            clamp=case.bounds,
        )

    @staticmethod
    def _conditional(network: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        return cast(Tensor, network(x, y))

    def sample(self, x: Tensor) -> Tensor:
        """Run the chains of the case from ``x (B, *shape)``, with torch's global generator."""
        return cast(Tensor, self.sampler.sample(self.energy, x))


def textbook_of(case: Case, energy: EnergyModel) -> nn.Module:
    """Build the textbook network of a case with the weights of our network."""
    kinds = {"2-D MLP": textbook.Mlp, "MNIST CNN": textbook.ConvNet, "IGEBM net": textbook.ResNet}
    network = kinds[case.name]()
    weights = energy.state_dict()
    if case.name == "MNIST CNN":  # its first kernel is a reparametrisation
        weights = {
            name.replace("parametrizations.weight.original", "weight"): value
            for name, value in weights.items()
        }
    network.load_state_dict(weights)
    return network


def gflop(case: Case) -> float:
    """Return the GFLOP of one step of all chains by the plain algorithm."""
    network, y = textbook_of(case, case.build()), labels_of(case, "cpu")
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    x = torch.rand(case.num_chains, *case.shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (network(x) if y is None else network(x, y)).sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return counter.get_total_flops() / 1e9


class Batches:
    """A data set of one batch."""

    def __init__(self, x: Tensor, num_classes: int) -> None:
        self.x, self.y = x, torch.randint(max(num_classes, 1), (len(x),))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return samples ``(B, *shape)`` and labels ``(B,)``."""
        return self.x, self.y


def labels_of(case: Case, device: str) -> Tensor | None:
    """Return the labels ``(B,)`` of the chains of a conditional case."""
    return (
        torch.arange(case.num_chains, device=device) % case.num_classes
        if case.num_classes
        else None
    )


def kinds(case: Case, device: str) -> dict[str, tuple[bool, Precision]]:
    """Return the ways to run our chains: whether compiled, and the precision of the network."""
    if device == "cpu" or case.bounds is None:
        return {"ours": (case.compiles, "float32"), "ours, uncompiled": (False, "float32")}
    return {
        "ours": (case.compiles, "bfloat16"),
        "ours, float32": (case.compiles, "float32"),
        "ours, uncompiled": (False, "float32"),
    }


def our_trainer(
    case: Case,
    energy: EnergyModel,
    compiles: bool,
    precision: Precision,
    device: str,
    update_precision: Precision = "float32",
) -> Trainer:
    """Build the trainer of the pipeline, with one shard and random numbers as data."""
    sampler = {
        field: getattr(case.sampler, field)
        for field in ("num_steps", "step_size", "noise_scale", "score_clip")
    }
    values = {
        "dataset": {"name": "digits"},
        "energy": {"name": "mlp"},
        "sampler": {"name": "langevin"}
        | {key: value for key, value in sampler.items() if value is not None},
        "objective": {
            "name": "contrastive_divergence",
            "energy_penalty": 0.1,
            "conditional": case.num_classes > 0,
        },
        "train": {
            "num_steps": 1000,
            "batch_size": case.num_chains,
            "num_shards": 1,
            "compile": compiles,
            "precision": precision,
            "update_precision": update_precision,
        }
        | {"max_energy": 1e9},
        "replay": {"capacity": max(8192, case.num_chains)},
        "optimizer": {"lr": 1e-4, "max_grad_norm": 0.1},
        "cluster": {"workers": 1},
    }
    params = config.from_values(values, Path("benchmark"))
    kernel = langevin.build(case.sampler, bounds=case.bounds)
    objective = contrastive_divergence.build(
        params, networks={"energy": energy}, kernel=kernel, bounds=case.bounds
    )
    x = noise((case.num_chains, *case.shape), case.bounds, stream(0, "data"))
    chains = ReplayShard(
        params.replay.capacity,
        case.shape,
        case.bounds,
        range(case.num_classes),
        stream(0, "chains", device=device),
    )
    data: Any = {0: Batches(x, case.num_classes)}
    return Trainer(
        params=params, objective=objective, data=data, replay={0: chains}, comm=LocalComm(),
        device=torch.device(device), num_classes=max(case.num_classes, 1), labelled=None, digest="",
    )  # fmt: skip


def sampling(case: Case, device: str) -> tuple[dict[str, Sampling], dict[str, float]]:
    """Return the samplers, and how far their chains are from ours under equal noise."""
    energy, y, num_steps = case.build().to(device), labels_of(case, device), case.sampler.num_steps
    kernel = langevin.build(case.sampler, bounds=case.bounds)
    start = noise((case.num_chains, *case.shape), case.bounds, stream(0, "start", device=device))
    chains: dict[str, Chains] = {"ours, uncompiled": Chains(energy, kernel, num_steps)}
    for name, (compiles, precision) in kinds(case, device).items():
        if name not in chains:
            chains[name] = CompiledChains(
                energy, kernel, num_steps, compiles=compiles, precision=precision
            )
    works: dict[str, Sampling] = {
        name: partial(lambda sample: sample(start, y, stream(1, "chain", device=device)), sample)
        for name, sample in chains.items()
    }
    ends = {
        name: sample(start, y, stream(1, "chain", device=device))[0]
        for name, sample in chains.items()
    }
    if has("ebm"):
        kit = EbmKit(case, textbook_of(case, energy).to(device), y)
        works["ebmkit"] = lambda: kit.sample(start)
        if device == "cpu":  # where torch's global generator can give the same noise
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(stream(1, "chain").get_state())
                ends["ebmkit"] = kit.sample(start)
    if case.bounds is None:
        peer = TorchEBM(case, textbook_of(case, energy).to(device), device)
        works["TorchEBM"] = lambda: peer.sample(start)
        ends["TorchEBM"] = peer.sample(start, stream(1, "chain", device=device))
    else:
        network, generator = textbook_of(case, energy).to(device), stream(1, "chain", device=device)
        equal_noise = torch.stack(
            [torch.randn(start.shape, generator=generator, device=device) for _ in range(num_steps)]
        )
        loop = partial(textbook.sample, network, start, y, num_steps, clip=case.sampler.score_clip)
        works["textbook"] = loop
        works["textbook, frozen"] = lambda: loop(freezes=True)
        ends["textbook"] = loop(noise=equal_noise)
    return works, {
        name: (end - ends["ours"]).abs().max().item()
        for name, end in ends.items()
        if name != "ours"
    }


def training(case: Case, device: str) -> dict[str, Sampling]:
    """Return the training steps by name."""
    energy = case.build().to(device)
    x = noise((case.num_chains, *case.shape), case.bounds, stream(0, "data"))
    works: dict[str, Sampling] = {
        name: our_trainer(case, copy.deepcopy(energy), *options, device).advance
        for name, options in kinds(case, device).items()
    }
    if "ours, float32" in works:  # a GPU
        options = case.compiles, "bfloat16", device, "bfloat16"
        half = our_trainer(case, copy.deepcopy(energy), *options)
        works["ours, update in bfloat16 too"] = half.advance
    if case.bounds is None:
        peer = TorchEBM(case, textbook_of(case, energy).to(device), device)
        works["TorchEBM"] = lambda: peer.step(x)
    else:
        for name, freezes in (("textbook", False), ("textbook, frozen", True)):
            network = textbook_of(case, energy).to(device)
            plain = textbook.Trainer(
                network, case.shape, case.num_classes, case.sampler.num_steps, freezes
            )
            works[name] = lambda plain=plain: plain.step(x.to(device))
    return works


def row(case: Case, what: str, device: str) -> dict[str, Any]:
    """Measure a case."""
    differences: dict[str, float] = {}
    if what == "sampling":
        works, differences = sampling(case, device)
    else:
        works = training(case, device)
    timing = take_turns(works, "ours", case.rounds)
    peak = peak_gflops(device, getattr(torch, kinds(case, device)["ours"][1]))
    return {
        "work": what, "network": case.name, "chains": case.num_chains,
        "num_steps": case.sampler.num_steps, "rounds": case.rounds, "seconds": timing.seconds,
        "share_of_peak": gflop(case) * case.sampler.num_steps / timing.seconds["ours"] / peak,
        "peak_gflops": peak, "largest_difference": differences,
        # time of the peer / our time
        "ratio": {
            name: [1 / high, 1 / median, 1 / low]
            for name, (median, low, high) in timing.ratio.items() if name != "ours"
        },
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", default="", help="only cases with this in their name")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/langevin.json"))
    args = options.parse_args()
    previous = read_json(args.out, "benchmark")["rows"] if args.out.exists() else []
    content: dict[str, Any] = circumstances("torchebm", "ebmkit") | {
        "rows": [row for row in previous if args.only not in row["network"]]
    }
    for case in CASES if args.device == "cpu" else ON_GPU:
        if args.only in case.name:
            for what in WORKS:
                content["rows"].append(row(case, what, args.device))
                print(summary(content["rows"][-1]), flush=True)
                write_json(args.out, content)


def summary(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    peers = "   ".join(
        f"{name} x{mid:.2f} ({low:.2f} to {high:.2f})"
        for name, (low, mid, high) in row["ratio"].items()
    )
    differences = "".join(
        f"; {name} within {value:.0e}" for name, value in row["largest_difference"].items()
    )
    return (
        f"{row['work']:14}{row['network']:10}{row['chains']:6} chains, K={row['num_steps']:<4}"
        f"{1e3 * row['seconds']['ours']:9.1f} ms, {row['share_of_peak']:.0%} of peak"
        f"   {peers}{differences}"
    )


if __name__ == "__main__":
    main()
