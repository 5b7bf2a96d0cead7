"""The user's own data: an ``.npz`` or ``.npy`` file, or a folder of images.

Each sub-folder of images is a class. Unsigned bytes are images of shape ``(n, h, w)``,
``(n, h, w, channels)`` or ``(n, channels, h, w)``. Floats may have any shape ``(n, ...)`` and are
not scaled. Results on such data have the mark "own files" and the digest of the index.
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
    """File or folder, relative to the working directory or else to EBM_DATA_DIR. An ``.npz`` has
    ``images`` and optionally ``labels``, or both with the prefixes ``train_`` and ``test_``."""
    val_fraction: Probability = 0.1
    """Fraction of the training samples held out for choosing settings, by a fixed random choice."""
    test_fraction: Probability = 0.2
    """Fraction of all samples held out for reporting, if the file has no test part; 1 for a set
    used only for comparison."""
    max_samples: PositiveInt | None = None
    """Maximum number of samples of each part, drawn at random; all samples if absent."""

    def check(self, params: Params) -> None:
        if self.val_fraction + self.test_fraction > 1:
            raise Mismatch(
                "dataset.val_fraction",
                "val_fraction and test_fraction add up to more than 1; lower one of them",
            )


def locate(config: Config) -> Path:
    """Return the file or folder. Raises :class:`DataError` where it does not exist."""
    path = Path(config.path)
    if not path.exists():
        path = Path(os.environ.get("EBM_DATA_DIR", ".")) / config.path
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; set dataset.path to an .npz, an .npy or a folder of"
            " images"
        )
    return path


def load(config: Config) -> Dataset:
    path = locate(config)
    parts = _read_folder(path) if path.is_dir() else _read_file(path)
    parts = {name: _limit(part, config.max_samples, name) for name, part in parts.items()}
    train = parts["train"]
    if len(train.x) < 2:
        raise DataError(f"{path}: has {len(train.x)} samples; provide at least 2")
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
        content = np.load(path, allow_pickle=False)
        arrays: dict[str, Any] = (
            {"images": content} if isinstance(content, np.ndarray) else dict(content)
        )
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: not a plain .npy or .npz of numbers ({error}); write it with numpy.savez"
        ) from None
    prefixes = {"train": "train_", "test": "test_"} if "train_images" in arrays else {"train": ""}
    parts = {}
    for split, prefix in prefixes.items():
        if f"{prefix}images" not in arrays:
            if split == "train":
                raise DataError(
                    f"{path}: has {', '.join(arrays)}; expected 'images' or 'train_images', rename"
                    " the samples"
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
                f"{path}: {prefix}labels must be {len(x)} integers from 0, found {labels.dtype}"
                f" {labels.shape}"
            )
        parts[split] = Arrays(x, None if labels is None else labels.astype(np.int64))
    if len({part.y is None for part in parts.values()}) > 1:
        raise DataError(
            f"{path}: only one of train and test has labels; provide labels for both or neither"
        )
    return parts


def _samples(x: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating) or x.ndim < 2:
            raise DataError(
                f"{path}: expected images of unsigned bytes or samples of floats, found {x.dtype}"
                f" {x.shape}"
            )
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"{path}: has NaN or infinite values; remove them first")
        return x
    if x.ndim == 3:  # grey
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] <= _MAX_CHANNELS:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    if x.ndim == 4 and x.shape[1] <= _MAX_CHANNELS:
        return x
    raise DataError(
        f"{path}: images of shape {x.shape}; expected (n, h, w), (n, h, w, channels) or"
        " (n, channels, h, w)"
    )


def _read_folder(path: Path) -> dict[str, Arrays]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _IMAGES)
    if not files:
        raise DataError(f"{path}: no images in this folder; add files of {', '.join(_IMAGES)}")
    images: list[npt.NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as picture:
                images.append(
                    np.asarray(
                        picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB")
                    )
                )
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{file}: not a readable image ({error}); replace or remove it"
            ) from None
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{file}: has the shape {images[-1].shape}, but {files[0].name} has"
                f" {images[0].shape}; convert all images to one size and mode"
            )
    folders = sorted({file.parent for file in files})
    labels = (
        np.array([folders.index(file.parent) for file in files], np.int64)
        if len(folders) > 1
        else None
    )
    return {"train": Arrays(_samples(np.stack(images), path), labels)}
