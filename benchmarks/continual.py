"""Split MNIST beside the systems of Table 1 of Du & Mordatch 2019, on the same stream of data.

Run ``python -m benchmarks.continual --data data/continual-split-mnist``. A conditional variational
autoencoder (Kingma & Welling 2014), elastic weight consolidation (EWC; Kirkpatrick et al. 2017),
synaptic intelligence (SI; Zenke et al. 2017) and fine-tuning learn five tasks of two digits, with
two layers of 400 units and as many steps and samples as the recipe. None keeps data. The strengths
are chosen by the accuracy on the validation split after all tasks, with a seed of its own. Chance
is .1; a softmax that forgets all but the last task has about .2. Published: VAE .4004, EWC .1980,
SI .1967. Writes reports/benchmarks/continual/metrics.json.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import circumstances
from ebm_dist.data import shards
from ebm_dist.files import write_json
from ebm_dist.rng import stream
from pipelines import run

NUM_TASKS, PER_TASK, WIDTH, LATENT = 5, 2, 400, 50
CHOICE_SEED = 1000
STRENGTHS = {"EWC": (10.0, 100.0, 1000.0, 1e4, 1e5), "SI": (0.1, 1.0, 10.0, 100.0)}
RATES = (3e-4, 1e-3)
_DAMPING = 0.1  # of synaptic intelligence
_NUM_FISHER = 2000  # images for the Fisher information


def batches(
    x: Tensor, y: Tensor, task: int, num_steps: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches ``(B, 784)`` and labels of a task."""
    rows = (y // PER_TASK == task).nonzero().flatten()
    generator = stream(seed, f"continual/{task}")
    for _ in range(num_steps):
        chosen = rows[torch.randint(len(rows), (batch_size,), generator=generator)]
        yield x[chosen], y[chosen]


class Softmax(nn.Module):
    """A classifier; a penalty holds weights that earlier tasks need."""

    def __init__(self, kind: str, strength: float) -> None:
        super().__init__()
        self.kind, self.strength = kind, strength
        self.layers = nn.Sequential(
            nn.Linear(784, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 10),
        )
        zeros = [torch.zeros_like(p) for p in self.parameters()]
        self.anchors = [p.detach().clone() for p in self.parameters()]
        self.importance = zeros
        self.path = [z.clone() for z in zeros]

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        return F.cross_entropy(self.layers(x), y)

    def penalty(self) -> Tensor:
        """Return ``strength / 2 * sum of importance * (weight - anchor)^2``."""
        parts = zip(self.importance, self.parameters(), self.anchors, strict=True)
        return (
            self.strength / 2 * torch.stack([(i * (p - a) ** 2).sum() for i, p, a in parts]).sum()
        )

    def moved(self, gradients: list[Tensor], before: list[Tensor]) -> None:
        """Add a step to the path integral of synaptic intelligence."""
        for omega, g, p, old in zip(self.path, gradients, self.parameters(), before, strict=True):
            omega.sub_(g * (p.detach() - old))

    def end_task(self, x: Tensor, y: Tensor) -> None:
        if self.kind == "EWC":
            for row, label in zip(x[:_NUM_FISHER].split(1), y[:_NUM_FISHER].split(1), strict=True):
                loss = F.cross_entropy(self.layers(row), label)
                squares = [g**2 for g in torch.autograd.grad(loss, list(self.parameters()))]
                for importance, square in zip(self.importance, squares, strict=True):
                    importance.add_(square / min(len(x), _NUM_FISHER))
        elif self.kind == "SI":
            for importance, omega, p, a in zip(
                self.importance, self.path, self.parameters(), self.anchors, strict=True
            ):
                importance.add_(F.relu(omega) / ((p.detach() - a) ** 2 + _DAMPING))
                omega.zero_()
        self.anchors = [p.detach().clone() for p in self.parameters()]

    def scores(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class ConditionalVAE(nn.Module):
    """``p(x | y)`` by a decoder of latent and label; classifies by its bound of the likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(794, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 2 * LATENT),
        )
        self.decoder = nn.Sequential(
            nn.Linear(LATENT + 10, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Linear(WIDTH, 784),
        )

    def negative_bound(self, x: Tensor, y: Tensor, num_draws: int = 1) -> Tensor:
        """Return ``-ELBO (B,)`` in nats."""
        labels = F.one_hot(y, 10).float()
        mean, log_sd = self.encoder(torch.cat([x, labels], dim=1)).chunk(2, dim=1)
        divergence = ((mean**2 + (2 * log_sd).exp()) / 2 - log_sd - 0.5).sum(dim=1)
        errors = []
        for _ in range(num_draws):
            z = mean + log_sd.exp() * torch.randn_like(mean)
            logits = self.decoder(torch.cat([z, labels], dim=1))
            errors.append(
                F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(dim=1)
            )
        return divergence + torch.stack(errors).mean(dim=0)

    def loss(self, x: Tensor, y: Tensor, task: int) -> Tensor:
        return self.negative_bound(x, y).mean()

    def penalty(self) -> Tensor:
        return torch.zeros(())

    def moved(self, gradients: list[Tensor], before: list[Tensor]) -> None:
        pass

    def end_task(self, x: Tensor, y: Tensor) -> None:
        pass

    def scores(self, x: Tensor) -> Tensor:
        columns = [-self.negative_bound(x, torch.full((len(x),), k), 10) for k in range(10)]
        return torch.stack(columns, dim=1)


def accuracy(
    make: Callable[[], Any],
    lr: float,
    seed: int,
    split: str,
    index: shards.Index,
    steps: int,
    batch_size: int,
) -> float:
    """Learn the tasks in turn; return the accuracy on a split over all ten labels."""
    torch.manual_seed(seed)
    model = make()
    x, y = shards.read_split(index, "train")
    x = x.flatten(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for task in range(NUM_TASKS):
        for x_batch, y_batch in batches(x, y, task, steps // NUM_TASKS, batch_size, seed):
            parameters = list(model.parameters())
            before = [p.detach().clone() for p in parameters]
            own = torch.autograd.grad(model.loss(x_batch, y_batch, task), parameters)
            penalty = model.penalty()
            extra = torch.autograd.grad(penalty, parameters) if penalty.requires_grad else None
            for i, p in enumerate(parameters):
                p.grad = own[i] if extra is None else own[i] + extra[i]
            optimizer.step()
            model.moved(list(own), before)
        rows = y // PER_TASK == task
        order = torch.randperm(int(rows.sum()), generator=stream(seed, f"continual/end/{task}"))
        model.end_task(x[rows][order], y[rows][order])
    with torch.no_grad():
        x, y = shards.read_split(index, split)
        parts = [model.scores(part).argmax(dim=1) for part in x.flatten(1).split(1000)]
    return float((torch.cat(parts) == y).float().mean())


def candidates() -> dict[str, list[tuple[Callable[[], Any], float, float | None]]]:
    """Return the ways to make each system: model, learning rate and strength."""
    found: dict[str, list[tuple[Callable[[], Any], float, float | None]]] = {
        "fine-tuning": [(lambda: Softmax("none", 0.0), lr, None) for lr in RATES],
        "VAE": [(ConditionalVAE, lr, None) for lr in RATES],
    }
    for kind, strengths in STRENGTHS.items():
        found[kind] = [
            (lambda kind=kind, s=s: Softmax(kind, s), lr, s)
            for s in strengths
            for lr in RATES  # type: ignore[misc]
        ]
    return found


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, default=Path("data/continual-split-mnist"))
    options.add_argument("--steps", type=int, default=3000, help="over all tasks")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument(
        "--out", type=Path, default=Path("reports/benchmarks/continual/metrics.json")
    )
    args = options.parse_args()
    torch.set_num_threads(1)
    index = shards.read_index(args.data / "dataset")
    settings, seeds = dict[str, Any](), {str(seed): dict[str, Any]() for seed in range(args.seeds)}
    for name, ways in candidates().items():
        of = [
            accuracy(make, lr, CHOICE_SEED, "val", index, args.steps, args.batch_size)
            for make, lr, _ in ways
        ]
        make, lr, strength = ways[int(np.argmax(of))]
        settings[name] = {"lr": lr, "strength": strength, "val": max(of)}
        print(name, settings[name], flush=True)
        for seed in range(args.seeds):
            reached = accuracy(make, lr, seed, "test", index, args.steps, args.batch_size)
            seeds[str(seed)][name] = {"accuracy": reached}
            print(name, seed, f"{reached:.4f}", flush=True)
    means = {
        name: {"accuracy": float(np.mean([row[name]["accuracy"] for row in seeds.values()]))}
        for name in settings
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, means | {"seeds": seeds, "settings": settings})
    write_json(args.out.with_name("circumstances.json"), circumstances())


if __name__ == "__main__":
    run(main)
