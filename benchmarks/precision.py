"""Compare the distribution of chains in bfloat16 with that in float32: energies and FID-clf.

    python -m benchmarks.precision --model models/igebm-cifar10/0 --data data/igebm-cifar10 \
      --classifier models/igebm-cifar10/classifier

Each precision has several independent sets of chains from noise. Every set is compared with every
other set in float32; the differences between float32 sets are those of chance. The float32 network
gives the energies of the ends. TF32 is the default of PyTorch for float32 convolutions on a GPU.
Writes reports/benchmarks/precision.json.
"""

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import ks_2samp
from torch import Tensor

from benchmarks import circumstances
from ebm_dist import models
from ebm_dist.chains.compiled import CompiledChains
from ebm_dist.chains.eager import Chains
from ebm_dist.data import shards
from ebm_dist.energies import given, is_conditional
from ebm_dist.files import encode, read_tensors, write_json
from ebm_dist.metrics import features
from ebm_dist.metrics.features import Classifier
from ebm_dist.models.trained import OnGpu
from ebm_dist.rng import stream
from ebm_dist.samplers import noise
from ebm_dist.storage import write_whole

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("float32", "TF32", "bfloat16") if DEVICE == "cuda" else ("float32", "bfloat16")


def chains_of(kind: str, trained: models.TrainedModel, num_steps: int) -> Chains:
    """Return the chains of a trained model in a precision."""
    energy = trained.energy
    network = energy.network if isinstance(energy, OnGpu) else energy
    torch.backends.cudnn.allow_tf32 = kind == "TF32"
    if kind == "bfloat16":
        return CompiledChains(
            network, trained.kernel(), num_steps, compiles=DEVICE == "cuda", precision="bfloat16"
        )
    return Chains(network, trained.kernel(), num_steps)


class Sizes(NamedTuple):
    """How much is drawn in each precision."""

    chains: int
    """chains per set"""
    num_steps: int
    sets: int
    """sets per precision"""


def draw(
    kind: str, number: int, trained: models.TrainedModel, classifier: Classifier, sizes: Sizes
) -> dict[str, Tensor]:
    """Return float32 energies ``(chains,)`` and features ``(chains, dim)`` of a set of chains."""
    sample = chains_of(kind, trained, sizes.num_steps)
    labels = (
        torch.arange(sizes.chains, device=DEVICE) % trained.card["num_classes"]
        if is_conditional(trained.params)
        else None
    )
    size = (sizes.chains, *trained.card["shape"])
    start = noise(size, trained.bounds, stream(number, f"precision/{kind}/start", device=DEVICE))
    end: Tensor = sample(start, labels, stream(number, f"precision/{kind}/chain", device=DEVICE))[0]
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        energies = given(sample.energy, labels)(end).cpu()
    return {
        "energies": energies,
        "features": torch.from_numpy(features.classify(classifier, end.cpu()).features),
    }


def measure(
    trained: models.TrainedModel,
    classifier: Classifier,
    real: Tensor,
    sizes: Sizes,
    cache: Path | None = None,
    until: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Yield a row per precision; ``real (n, *shape)`` are the images of FID-clf.

    Sets are kept in ``cache``, so that another call goes on from them. No set is begun after the
    time ``until``.
    """
    seen_real = features.classify(classifier, real).features
    energies: dict[tuple[str, int], Any] = {}
    seen: dict[tuple[str, int], Any] = {}
    for kind in KINDS:
        for number in range(sizes.sets):
            path = cache and cache / f"{kind}-{number}.safetensors"
            if path and path.exists():
                drawn = read_tensors(path, "benchmarks.precision")
            elif time.time() > until:
                return
            else:
                drawn = draw(kind, number, trained, classifier, sizes)
                if path:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, encode(drawn))
            energies[kind, number] = drawn["energies"].numpy()
            seen[kind, number] = drawn["features"].numpy()
        keys = [key for key in seen if key[0] == kind]
        pairs = [
            (a, b)
            for a in keys
            for b in seen
            if b[0] == "float32" and (a[1] < b[1] if kind == "float32" else True)
        ]
        yield {
            "precision": kind,
            "energy_mean": [float(energies[key].mean()) for key in keys],
            "energy_sd": [float(energies[key].std()) for key in keys],
            "fid_clf": [features.frechet_distance(seen[key], seen_real) for key in keys],
            "fid_clf_to_float32": [features.frechet_distance(seen[a], seen[b]) for a, b in pairs],
            "ks_to_float32": [
                float(ks_2samp(energies[a], energies[b]).statistic) for a, b in pairs
            ],
        }


def summary(row: dict[str, Any]) -> str:
    """Return a row as one line of text: medians and ranges."""
    values = {name: value for name, value in row.items() if isinstance(value, list)}
    text = ", ".join(
        f"{name} {statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})"
        for name, v in values.items()
    )
    return f"{row['precision']}: {text}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "data", "classifier"):
        options.add_argument(f"--{name}", type=Path, required=True)
    options.add_argument("--chains", type=int, default=1000, help="chains per set")
    options.add_argument("--num-steps", type=int, default=120)
    options.add_argument("--sets", type=int, default=4, help="sets per precision")
    options.add_argument("--out", type=Path, default=Path("reports/benchmarks/precision.json"))
    args = options.parse_args()
    trained, classifier = models.load(args.model), features.load(args.classifier)
    assert classifier is not None
    real, _ = shards.read_split(shards.read_index(args.data / "dataset"), "test")
    rows = list[dict[str, Any]]()
    for row in measure(trained, classifier, real, Sizes(args.chains, args.num_steps, args.sets)):
        rows.append(row)
        print(summary(row), flush=True)
    settings = {
        "chains": args.chains,
        "num_steps": args.num_steps,
        "model": trained.card["run_digest"],
    }
    write_json(args.out, circumstances() | settings | {"rows": rows})


if __name__ == "__main__":
    main()
