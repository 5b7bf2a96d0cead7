"""Pictures of a run's chains, one per checkpoint, taken by the driver while training goes on."""

import io
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ebm_dist.errors import DataError
from ebm_dist.files import read_tensors
from ebm_dist.report import figures
from ebm_dist.runs.background import call_every
from ebm_dist.storage import read_bytes, write_whole
from ebm_dist.training import checkpoint, state

_FOLDER, _LOOK_EVERY_S = "pictures", 2.0
_CHAINS, _MOST_ROWS = 12, 12  # chains of a picture; rows of the strip
_SCALE = "Scale"  # text chunk of a picture whose black and white are not 0 and 1


def taken(run: Path) -> dict[int, Path]:
    """Return the pictures of a run, PNG files, by step."""
    return {int(path.stem): path for path in sorted((run / _FOLDER).glob("*.png"))}


def take(run: Path) -> None:
    """Write a picture of the first chains of each new checkpoint, if the chains are images."""
    folders = checkpoint.whole(run)
    for step in folders.keys() - taken(run).keys():
        for path in state.chain_files(folders[step])[:1]:  # of the first logical shard
            with suppress(DataError):  # the checkpoint has just been deleted
                _keep(run, step, read_tensors(path, "train")["position"][:_CHAINS].numpy())


def _keep(run: Path, step: int, chains: figures.Array) -> None:
    if chains.ndim == 4:
        out, chunks, scale = io.BytesIO(), PngInfo(), figures.grey_scale(chains)
        if note := figures.scale_note(scale):
            chunks.add_text(_SCALE, note)
        sheet = Image.fromarray(figures.tile(chains, _CHAINS, scale))
        sheet.save(out, "PNG", pnginfo=chunks)
        (run / _FOLDER).mkdir(exist_ok=True)
        write_whole(run / _FOLDER / f"{step:08d}.png", out.getvalue())


def sync_while_running(run: Path) -> AbstractContextManager[None]:
    """Take pictures every few seconds while the block runs, and once at its end."""

    def look() -> None:
        with suppress(OSError):  # the object store is unreachable: only pictures are missing
            take(run)

    return call_every(look, _LOOK_EVERY_S)


def strip(run: Path) -> bytes | None:
    """Return the chains over the training as one PNG picture, a row per checkpoint.

    Return None if there are no pictures.
    """
    pictures = taken(run)
    if not pictures:
        return None
    steps = [
        [*pictures][i]
        for i in np.unique(np.linspace(0, len(pictures) - 1, _MOST_ROWS).round().astype(int))
    ]
    sheets = [Image.open(io.BytesIO(read_bytes(pictures[step]))) for step in steps]
    note = ""
    if any(_SCALE in sheet.info for sheet in sheets):
        note = "; black and white are the lowest and highest value of a row"
    return figures.titled(
        np.concatenate([np.asarray(sheet)[1:] for sheet in sheets]),
        f"The same replay slots, one row per step{note}",
        [f"{step:,}" for step in steps],
    )
