"""The smallest sizes at which each part takes its whole path: the rehearsal on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import langevin, precision

TESTS = "tests/unit/test_rng.py"
PRECISION = precision.Sizes(chains=20, num_steps=2, sets=2)
CASES = [
    case._replace(
        num_chains=4, sampler=replace(case.sampler, num_steps=2), rounds=1, compiles=False
    )
    for case in (langevin.CASES[0], langevin.CASES[2])
]
_SIDE = 16


def changes(recipe: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the values that shrink a recipe, on images that are made here."""
    train = {"num_steps": 12, "batch_size": 8, "num_shards": 1}
    train |= {"log_every": 2, "checkpoint_every": 4, "max_energy": 1e9}
    common: dict[str, dict[str, Any]] = {
        "train": train | {"compile": False, "precision": "float32"},
        "replay": {"capacity": 100},
        "cluster": {"workers": 1, "use_gpu": False},
        "register": {"gates": []},
    }
    if recipe == "igebm-cifar10":
        suites: dict[str, dict[str, Any]] = {
            "samples": {"num_samples": 40, "num_steps": 2, "num_frames": 2},
            "histogram": {"max_samples": 40},
            "ood": {"max_samples": 40, "num_chains": 20, "num_bootstrap": 40},
            "cross_class": {"num_samples": 40, "num_rounds": 2, "steps_per_round": 2},
            "completion": {"num_images": 4, "num_completions": 2, "num_steps": 2},
        }
        return common | {
            "dataset": _images(folder, "photos", 3, 2, test_fraction=0.3),
            "comparison_datasets": {
                name: _images(folder, name, 3, 2, val_fraction=0.0, test_fraction=1.0)
                for name in ("svhn", "textures")
            },
            "energy": {"channels": [8, 8]},
            "sampler": {"num_steps": 2},
            "features": {"num_steps": 5, "dim": 4},
            "evaluation": suites,
        }
    return common | {
        "dataset": _images(folder, "stacked", 2, 100),  # two digits an image
        "comparison_datasets": {"digits": _images(folder, "digits", 1, 10)},
        "energy": {"channels": [4, 4], "hidden": 4},
        "objective": {
            "generator": {"name": "dcgan", "latent_size": 4, "channels": [4, 4]},
            "statistics_channels": [4],
            "statistics_hidden": [4],
        },
        "features": {"dataset": "digits", "num_steps": 5, "dim": 4},
        "evaluation": {"modes": {"samples_per_mode": 2, "num_steps": 1}},
    }


def _images(
    folder: Path, name: str, num_channels: int, num_classes: int, **settings: float
) -> dict[str, Any]:
    """Write images of noise to a file; return the settings of that data set."""
    path = folder / "toy-data" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(len(name))
        images = generator.integers(0, 256, (240, num_channels, _SIDE, _SIDE), np.uint8)
        with path.open("wb") as stream:
            np.savez(stream, images=images, labels=np.arange(240) % num_classes)
    return {"name": "arrays", "path": str(path.resolve()), "layout": "channels_first", **settings}
