"""The user's own data: an ``.npz`` or ``.npy`` file, or a folder of images (one sub-folder a class, or none).

Unsigned bytes are read as images, ``(n, h, w)``, ``(n, h, w, channels)`` or, as torch has them, ``(n, channels, h, w)``; floats are
kept as they are. Results on such data carry the mark "own files" and the digest of the index.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ebm_dist.config import Mismatch, Params, PositiveInt, Probability, section
from ebm_dist.datasets import Arrays, Dataset, hold_out
from ebm_dist.errors import DataError

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_MAX_CHANNELS = 4


@section
class Config:
    path: str
    """The file or folder, as given or in the folder that EBM_DATA_DIR names. An ``.npz`` has ``images`` and,
    perhaps, ``labels``; or the same with ``train_`` and ``test_`` before."""
    val_fraction: Probability = 0.1
    """Share of the training samples to choose settings by; drawn at random, always the same."""
    test_fraction: Probability = 0.2
    """Share of all samples to report on, where the file has no test part of its own; 1 for a set that is only compared with."""
    max_samples: PositiveInt | None = None
    """At most this many of each part, drawn at random; all if absent."""

    def check(self, params: Params) -> None:
        if self.val_fraction + self.test_fraction > 1:
            raise Mismatch(
                "dataset.val_fraction", "validation and test together are more than all samples"
            )


def load(config: Config) -> Dataset:
    path = Path(config.path)
    if not path.exists():
        path = Path(os.environ.get("EBM_DATA_DIR", ".")) / config.path
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; set dataset.path to your .npz, .npy or folder of images"
        )
    parts = _read_folder(path) if path.is_dir() else _read_file(path)
    parts = {name: _limit(part, config.max_samples, name) for name, part in parts.items()}
    train = parts["train"]
    if len(train.x) < 2:
        raise DataError(f"{path}: {len(train.x)} samples; at least 2 are needed")
    test = parts.get("test")
    if test is None:
        train, test = hold_out(train, round(config.test_fraction * len(train.x)), "arrays/test")
    train, val = hold_out(train, round(config.val_fraction * len(train.x)), "arrays/val")
    is_image = train.x.dtype == np.uint8
    splits = {
        name: part
        for name, part in {"train": train, "val": val, "test": test}.items()
        if len(part.x)
    }
    return Dataset(
        splits=splits,
        scale=255.0 if is_image else 1.0,
        bounds=(0.0, 1.0) if is_image else None,
        num_classes=max(
            (int(part.y.max()) + 1 for part in splits.values() if part.y is not None), default=0
        ),
        source=f"own files: {path.name}",
        is_official=False,
    )


def _limit(part: Arrays, count: int | None, name: str) -> Arrays:
    return (
        hold_out(part, count, f"arrays/limit/{name}")[1] if count and len(part.x) > count else part
    )


def _read_file(path: Path) -> dict[str, Arrays]:
    try:
        found = np.load(path, allow_pickle=False)
        arrays: dict[str, Any] = {"images": found} if isinstance(found, np.ndarray) else dict(found)
    except (OSError, ValueError, EOFError) as failed:
        raise DataError(f"{path}: not a plain .npy or .npz of numbers ({failed})") from None
    prefixes = {"train": "train_", "test": "test_"} if "train_images" in arrays else {"train": ""}
    parts = {}
    for split, prefix in prefixes.items():
        if f"{prefix}images" not in arrays:
            if split == "train":
                raise DataError(
                    f"{path}: has {', '.join(arrays)}; expected 'images' or 'train_images'"
                )
            continue
        labels = arrays.get(f"{prefix}labels")
        x = _samples(arrays[f"{prefix}images"], path)
        if labels is not None and (
            labels.shape != (len(x),)
            or not np.issubdtype(labels.dtype, np.integer)
            or labels.min() < 0
        ):
            raise DataError(
                f"{path}: {prefix}labels must be {len(x)} whole numbers from 0, found {labels.dtype} {labels.shape}"
            )
        parts[split] = Arrays(x, None if labels is None else labels.astype(np.int64))
    if len({part.y is None for part in parts.values()}) > 1:
        raise DataError(f"{path}: has labels for one of train and test only; give both or none")
    return parts


def _samples(x: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2:
            raise DataError(
                f"{path}: expected images of unsigned bytes or samples of floats, found {x.dtype} {x.shape}"
            )
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{path}: has NaN or infinite values; clean them first")
        return x
    if x.ndim == 3:  # grey
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] <= _MAX_CHANNELS:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.ndim == 4 and x.shape[1] <= _MAX_CHANNELS:
        return x
    raise DataError(
        f"{path}: images of shape {x.shape}; expected (n, h, w), (n, h, w, channels) or (n, channels, h, w)"
    )


def _read_folder(path: Path) -> dict[str, Arrays]:
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _IMAGES)
    if not files:
        raise DataError(f"{path}: no images ({', '.join(_IMAGES)}) in this folder")
    images: list[npt.NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(
                    np.asarray(
                        picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB")
                    )
                )
        except (OSError, ValueError, Image.DecompressionBombError) as failed:
            raise DataError(f"{file}: not a readable image ({failed}); mend or remove it") from None
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{file}: is {images[-1].shape}, but {files[0].name} is {images[0].shape}; make all the same size and mode"
            )
    folders = sorted({file.parent for file in files})
    labels = (
        np.array([folders.index(file.parent) for file in files], np.int64)
        if len(folders) > 1
        else None
    )
    return {"train": Arrays(_samples(np.stack(images), path), labels)}
