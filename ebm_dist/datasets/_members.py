"""Samples as WebDataset tars of other people have them: a picture or an array each."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp")


def decode(content: bytes, kind: str) -> npt.NDArray[Any]:
    """Return a sample ``(C, H, W)`` of a picture, or the array of an ``.npy``.

    Raise ValueError for what is neither.
    """
    try:
        if kind == "npy":
            return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)  # type: ignore[no-any-return,no-untyped-call]
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("L", "RGB"):
                raise ValueError(f"mode {image.mode}, expected grey or RGB of 8 bits")
            pixels = np.asarray(image)
    # Pillow and numpy raise many kinds of errors for damaged content
    except Exception as failed:  # noqa: BLE001
        raise ValueError(f"{type(failed).__name__}: {failed}") from None
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def stack(contents: Iterable[bytes], kind: str) -> npt.NDArray[Any]:
    """Return samples ``(n, ...)`` of some pictures or arrays.

    Raise ValueError for what is neither, and where their shapes or types differ.
    """
    samples = [decode(content, kind) for content in contents]
    found = {f"{sample.dtype} {sample.shape}" for sample in samples}
    if len(found) > 1:
        raise ValueError(f"samples of different types or shapes: {', '.join(sorted(found))}")
    return np.stack(samples)
