"""Pictures of a run's chains, one for each checkpoint, taken while it trains: the driver looks on, and training does not wait."""

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
_CHAINS, _MOST_ROWS = 12, 12  # of a picture; of the strip


def taken(run: Path) -> dict[int, Path]:
    """The pictures of a run, PNG files, by step."""
    return {int(path.stem): path for path in sorted((run / _FOLDER).glob("*.png"))}


def take(run: Path) -> None:
    """Keep a row of the first chains of each checkpoint that has none yet, if they are images."""
    folders = checkpoint.whole(run)
    for step in folders.keys() - taken(run).keys():
        for path in state.chain_files(folders[step])[:1]:  # of the first logical shard
            with suppress(DataError):  # it has just been deleted
                _keep(run, step, read_tensors(path, "train")["position"][:_CHAINS].numpy())


def _keep(run: Path, step: int, chains: figures.Array) -> None:
    if chains.ndim == 4:
        out = io.BytesIO()
        Image.fromarray(figures.tile(chains, _CHAINS)).save(out, "PNG")
        (run / _FOLDER).mkdir(exist_ok=True)
        write_whole(run / _FOLDER / f"{step:08d}.png", out.getvalue())


def sync_while_running(run: Path) -> AbstractContextManager[None]:
    """While the block runs, take pictures now and then, and once at its end."""

    def look() -> None:
        with suppress(OSError):  # a store that is away: pictures are missing, nothing else
            take(run)

    return call_every(look, _LOOK_EVERY_S)


def strip(run: Path) -> bytes | None:
    """The chains over the training, a row a checkpoint, as one picture with a title; None if there are no pictures."""
    found = taken(run)
    if not found:
        return None
    steps = [
        [*found][i]
        for i in np.unique(np.linspace(0, len(found) - 1, _MOST_ROWS).round().astype(int))
    ]
    rows = [np.asarray(Image.open(io.BytesIO(read_bytes(found[step]))))[1:] for step in steps]
    return figures.titled(
        np.concatenate(rows),
        "The same replay slots, a row at each step",
        [f"{step:,}" for step in steps],
    )
