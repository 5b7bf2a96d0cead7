"""Read a folder of pictures as arrays; nothing in a picture is changed silently.

A picture is converted only where that keeps every value: a grey palette to grey, another palette to
colour, an opaque alpha channel is dropped, a rotation in EXIF is applied. Others are refused.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ebm_dist.datasets._paths import files_below
from ebm_dist.errors import DataError, reason

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_ORIENTATION = 0x0112  # tag of EXIF
_OPAQUE = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "PA": "P"}


class Pictures(NamedTuple):
    """The pictures of a folder."""

    splits: dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.str_] | None]]
    """Images ``(n, h, w)`` or ``(n, h, w, 3)`` and names of classes ``(n,)``, by split; only
    ``train`` where the folder has no folders of splits"""
    notes: list[str]
    """What was converted or skipped"""


def read_folder(folder: Path) -> Pictures:
    """Read all pictures below a folder. Each sub-folder is a class.

    ``train``, ``val`` and ``test`` are splits, with the classes inside, if there is a ``train`` and
    no other folder. Raise :class:`DataError` with the name of the file.
    """
    skipped: Counter[str] = Counter()
    files = []
    for file in files_below(folder):
        if any(part[0] == "." or part == "__MACOSX" for part in file.relative_to(folder).parts):
            skipped["hidden files"] += 1
        elif file.suffix.lower() not in _SUFFIXES:
            skipped["files of other types"] += 1
        else:
            files.append(file)
    if not files:
        raise DataError(
            f"{folder}: no images in this folder", f"add files of {', '.join(_SUFFIXES)}"
        )
    tops = {file.relative_to(folder).parts[0].lower() for file in files}
    has_splits = "train" in tops and tops <= set(_SPLITS)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        top = file.relative_to(folder).parts[0].lower()
        by_split.setdefault(_SPLITS[top] if has_splits else "train", []).append(file)
    images = _read_images(files, skipped)
    classes = {file: "/".join(file.relative_to(folder).parts[has_splits:-1]) for file in files}
    has_classes = len(set(classes.values())) > 1
    if has_classes and "" in classes.values():
        stray = next(file for file, name in classes.items() if not name)
        raise DataError(
            f"{stray}: is in no sub-folder, but other images are; sub-folders are classes",
            "move it into the folder of its class",
        )
    splits = {
        split: (
            np.stack([images[file] for file in members]),
            np.array([classes[file] for file in members]) if has_classes else None,
        )
        for split, members in by_split.items()
    }
    return Pictures(splits, [f"{what}: {count}" for what, count in skipped.items()])


def _read_images(files: list[Path], counts: Counter[str]) -> dict[Path, npt.NDArray[Any]]:
    images: dict[Path, npt.NDArray[Any]] = {}
    first = None
    for file in files:
        images[file] = _read_image(file, counts)
        first = first or file
        if (images[file].shape, images[file].dtype) != (images[first].shape, images[first].dtype):
            raise DataError(
                f"{file}: has the shape {images[file].shape} of {images[file].dtype}, but"
                f" {first.name} has {images[first].shape} of {images[first].dtype}",
                "convert all images to one size and mode",
            )
    return images


def _read_image(file: Path, counts: Counter[str]) -> npt.NDArray[Any]:
    """Return the values of a picture, ``(h, w)`` or ``(h, w, 3)``: bytes, uint16 or float32."""
    try:
        with Image.open(file) as picture:
            raw_mode = str(picture.tile[0].args) if picture.tile else ""
            if (num_frames := getattr(picture, "n_frames", 1)) > 1:
                raise DataError(f"{file}: has {num_frames} pictures", "write each to a file")
            if picture.getexif().get(_ORIENTATION, 1) != 1:
                counts["images turned as their EXIF orientation says"] += 1
            upright = ImageOps.exif_transpose(picture)
            values = np.asarray(_converted(upright, raw_mode, file, counts))
            return values.astype(values.dtype.newbyteorder("="))
    except DataError:
        raise
    # decoders of damaged files raise errors of many kinds
    except Exception as failed:  # noqa: BLE001
        raise DataError(
            f"{file}: not a readable image ({reason(failed)})",
            "replace or remove it",
        ) from None


def _converted(
    picture: Image.Image, raw_mode: str, file: Path, counts: Counter[str]
) -> Image.Image:
    """Return the picture in grey, colour, 16-bit grey or floats."""
    if picture.has_transparency_data:
        if picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise DataError(
                f"{file}: has transparent pixels, and their colour depends on a background",
                "flatten it: combine it with a background and save it without alpha channel",
            )
        counts["images without their alpha channel, which is opaque"] += 1
        picture = picture.convert(_OPAQUE.get(picture.mode, picture.mode))
    if picture.mode == "P":
        palette = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
        picture = picture.convert("L" if (palette == palette[:, :1]).all() else "RGB")
    if picture.mode == "1":
        picture = picture.convert("L")
    is_deep_grey = picture.mode.startswith("I;16")
    if not is_deep_grey and (";16" in raw_mode or picture.mode not in ("L", "RGB", "F")):
        found = "16 bits a channel" if ";16" in raw_mode else f"the mode {picture.mode}"
        raise DataError(
            f"{file}: has {found}, which cannot be read without a change of its values; expected"
            " grey of 8 or 16 bits or of floats, or colour of 8 bits",
            "convert it, or write the values to an .npz",
        )
    return picture
