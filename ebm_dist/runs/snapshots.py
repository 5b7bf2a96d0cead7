"""Pictures of a run's chains, one per checkpoint, taken by the driver while training goes on."""

import io
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from ebm_dist.errors import DataError
from ebm_dist.files import read_tensors
from ebm_dist.report import figures
from ebm_dist.runs.background import call_every
from ebm_dist.storage import read_bytes, write_whole
from ebm_dist.training import checkpoint, state

_FOLDER, _LOOK_EVERY_S = "pictures", 2.0
_CHAINS, _MOST_ROWS = 12, 12  # chains of a picture; rows of the strip


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
        out = io.BytesIO()
        Image.fromarray(figures.tile(chains, _CHAINS)).save(out, "PNG")
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
    rows = [np.asarray(Image.open(io.BytesIO(read_bytes(pictures[step]))))[1:] for step in steps]
    return figures.titled(
        np.concatenate(rows),
        "The same replay slots, one row per step",
        [f"{step:,}" for step in steps],
    )
