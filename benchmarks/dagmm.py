"""Run DAGMM (Zong et al. 2018) on KDD Cup 1999: ``python -m benchmarks.dagmm --data FOLDER``.

FOLDER has the prepared data of recipe meg-kdd99. An autoencoder and a mixture of Gaussians over its
code and errors, with the networks and settings of the paper. The score is its energy ``-log p(z)``,
with the mixture of all training rows. Rows, split and threshold are those of the recipe, judged as
in suite ``anomaly``. Beside it the same networks before training, since reruns found that they do
as well. Writes reports/benchmarks/dagmm/metrics.json as seeds end, and goes on where an earlier
call stopped.
"""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import circumstances
from ebm_dist.data import shards
from ebm_dist.evaluation import Report, over_seeds
from ebm_dist.evaluation.anomaly import score_detector
from ebm_dist.files import read_json, write_json
from ebm_dist.rng import numpy_stream, seeded, stream
from pipelines import run

_ENERGY_WEIGHT, _SINGULAR_WEIGHT = 0.1, 0.005  # lambda_1 and lambda_2 of section 3.4
_RATE, _BATCH, _NUM_GAUSSIANS = 1e-4, 1024, 4
_CONTAMINATION, _MAX_TEST, _RIDGE = 0.2, 50_000, 1e-6


class Gaussians(NamedTuple):
    """A mixture of K Gaussians of d dimensions."""

    shares: Tensor
    """``(K,)``"""
    means: Tensor
    """``(K, d)``"""
    covariances: Tensor
    """``(K, d, d)``"""

    def energy(self, z: Tensor) -> Tensor:
        """Return ``-log p(z)``, ``(n,)`` (eq. 6)."""
        root = torch.linalg.cholesky(self.covariances)
        offset = (z[:, None] - self.means).transpose(0, 1).transpose(1, 2)
        u = torch.linalg.solve_triangular(root, offset, upper=False)
        log_det = root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        each = -(u**2).sum(dim=1).T / 2 - log_det - z.shape[1] / 2 * math.log(2 * math.pi)
        return -(each + self.shares.log()).logsumexp(dim=1)


def of(z: Tensor, membership: Tensor) -> Gaussians:
    """Return the mixture of points ``z (n, d)`` with memberships ``(n, K)`` (eq. 5)."""
    counts = membership.sum(dim=0)
    means = membership.T @ z / counts[:, None]
    offset = z[:, None] - means
    products = torch.einsum("nk,nki,nkj->kij", membership, offset, offset)
    ridge = _RIDGE * torch.eye(z.shape[1], dtype=z.dtype)
    return Gaussians(counts / len(z), means, products / counts[:, None, None] + ridge)


class Network(nn.Module):
    """The compression network and the estimation network of section 4.3."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = layers(size, 60, 30, 10, 1)
        self.decoder = layers(1, 10, 30, 60, size)
        self.estimation = nn.Sequential(
            nn.Linear(3, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, _NUM_GAUSSIANS)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return z ``(n, 3)``, memberships ``(n, K)`` and squared errors ``(n,)``."""
        code = self.encoder(x)
        rebuilt = self.decoder(code)
        error = (x - rebuilt).norm(dim=1)
        relative = error / x.norm(dim=1).clamp(min=1e-10)
        features = torch.stack([relative, F.cosine_similarity(x, rebuilt)], dim=1)
        z = torch.cat([code, features], dim=1)
        return z, self.estimation(z).softmax(dim=1), error**2


def layers(*widths: int) -> nn.Sequential:
    """Return linear layers with tanh between them."""
    parts: list[nn.Module] = []
    for i, o in itertools.pairwise(widths):
        parts += [nn.Linear(i, o), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


@torch.no_grad()
def scores(network: Network, train: Tensor, test: Tensor) -> Any:
    """Return the energies ``(n,)`` of test rows under the mixture of all training rows."""
    network.eval()
    z, membership, _ = network(train)
    mixture = of(z.double(), membership.double())
    return mixture.energy(network(test)[0].double()).numpy()


def train(seed: int, rows: Tensor, num_steps: int) -> tuple[Network, Network]:
    """Return the networks before and after training."""
    with seeded(seed, "dagmm"):
        before, network = (Network(rows.shape[1]) for _ in range(2))
        before.load_state_dict(network.state_dict())
        optimizer, order = torch.optim.Adam(network.parameters(), _RATE), stream(seed, "dagmm")
        network.train()
        for _ in range(num_steps):
            x = rows[torch.randint(len(rows), (_BATCH,), generator=order)]
            z, membership, error = network(x)
            mixture = of(z, membership)
            singular = (1 / mixture.covariances.diagonal(dim1=1, dim2=2)).sum()
            loss = error.mean() + _ENERGY_WEIGHT * mixture.energy(z).mean()
            loss = loss + _SINGULAR_WEIGHT * singular
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return before, network


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="prepared data of the recipe")
    options.add_argument("--epochs", type=float, default=40.0, help="200 in the paper")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/dagmm/metrics.json"))
    args = options.parse_args()
    torch.set_num_threads(1)
    index = shards.read_index(args.data / "dataset")
    rows = shards.read_split(index, "train")[0]
    test, labels = shards.read_split(index, "test")
    chosen = torch.from_numpy(numpy_stream(0, "anomaly/test").permutation(len(test))[:_MAX_TEST])
    test, labels = test[chosen], labels[chosen]
    truth = (labels == labels.max()).long().numpy()
    seeds: dict[str, Any] = {}
    if args.out.exists():
        seeds = read_json(args.out, "benchmark")["seeds"]
    for seed in range(args.seeds):
        if str(seed) in seeds:
            continue
        networks = train(seed, rows, round(args.epochs * len(rows) / _BATCH))
        before, after = (
            score_detector(truth, scores(network, rows, test), _CONTAMINATION)
            for network in networks
        )
        seeds[str(seed)] = after | {"untrained": before}
        print(f"seed {seed}: F1 {after['f1']:.3f}, before training {before['f1']:.3f}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        means = over_seeds(
            {int(s): Report(figures, {}, {}) for s, figures in seeds.items()}
        ).metrics
        write_json(args.out, {**means, "seeds": seeds, "epochs": args.epochs})
        write_json(args.out.with_name("circumstances.json"), circumstances())


if __name__ == "__main__":
    run(main)
