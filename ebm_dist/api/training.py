"""Train in this process, without Ray, MLflow or DVC.

The result has the bits of the pipeline: same trainer, same shards, same export. It depends on
settings, data and code, not on whether one process or several workers trained.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebm_dist import config, models, storage
from ebm_dist.api._plain import plain
from ebm_dist.api._surroundings import usual
from ebm_dist.api.model import Model
from ebm_dist.api.sampling import check_seed
from ebm_dist.config import Params, nearest, plugin_name
from ebm_dist.data import shards
from ebm_dist.datasets import Dataset, arrays
from ebm_dist.errors import CheckpointError, ConfigError, DataError
from ebm_dist.files import read_json
from ebm_dist.runs import cluster, code, lineage
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm
from ebm_dist.training.reporter import Request, Row

Array = npt.NDArray[Any] | Tensor
Data = str | Path | Dataset | Array | tuple[Array, Array]
Settings = Params | Mapping[str, Any] | str | Path
RECIPES = code.ROOT / "pipelines" / "recipes"
_CARD = "model.json"
IN_MEMORY = "arrays in memory"
"""``dataset.path`` of a model of arrays that no file holds"""


@usual()
def train(
    params: Settings,
    data: Data,
    *,
    folder: str | Path | None = None,
    seed: int | None = None,
    progress: Callable[[Row], object] | None = None,
) -> Model:
    """Train a model in this process and return it.

    ``params``: a parameter file, the name of a recipe such as ``"mnist"``, a dict of its sections,
    or :class:`Params`. A dict needs ``energy``, ``sampler`` and ``objective``.

    ``data``: a folder of prepared data, a :class:`Dataset`, samples ``(n, ...)``, or samples and
    labels ``(n,)``, of NumPy or torch. Arrays are treated as the data set ``arrays`` treats a file
    of them: images of bytes are scaled to 0 to 1, columns of floats are standardised. All samples
    are for training, unless the settings have ``val_fraction`` or ``test_fraction``.

    ``folder``: where to keep the model, for :func:`ebm_dist.load`, and checkpoints: the same call
    resumes an interrupted training, and returns a finished one. None keeps nothing.

    ``seed`` replaces that of the settings. ``progress`` is called with each row of metrics, every
    ``train.log_every`` steps; ``progress=print`` shows them.

    The training uses ``train.num_threads`` CPU threads, and the GPU if ``cluster.use_gpu`` is true.
    Raise :class:`ConfigError`, :class:`DataError`, :class:`DivergedError` where an energy or
    gradient diverges, :class:`CheckpointError` where ``folder`` has another training, and
    :class:`ClusterError` where another process trains in it.
    """
    if seed is not None:
        check_seed(seed)
    settings = _settings(params, plain(seed))
    with tempfile.TemporaryDirectory() as work:
        settings, index = _prepared(settings, data, Path(work))
        place = storage.location(Path(work, "model") if folder is None else folder)
        _train(settings, index, place, progress)
        return Model(*models.load(place))


def _train(
    params: Params, index: shards.Index, folder: Path, progress: Callable[[Row], object] | None
) -> None:
    """Train to the end in ``folder / "checkpoints"`` and export the model to ``folder``."""
    if params.train.reduce != "ordered":
        raise ConfigError(
            f"train.reduce: {params.train.reduce} needs a group of workers",
            "set train.reduce: ordered, or train with the pipeline",
        )
    device = torch.device("cuda" if params.cluster.use_gpu else "cpu")
    if params.cluster.use_gpu and not torch.cuda.is_available():
        raise ConfigError(
            "cluster.use_gpu: torch sees no GPU on this machine", "set cluster.use_gpu: false"
        )
    digest, run = lineage.run_digest(params, index.digest), folder / "checkpoints"
    _check_folder(folder, digest)
    with (
        cluster.exclusive_lock(run, digest),
        _threads(params.train.num_threads),
        torch.enable_grad(),
    ):
        if not cluster.is_finished(run, digest, params.train):
            trainer.build(params, index, LocalComm(), device, digest).fit(run, _Reporter(progress))
        models.export(run, folder, params, index, digest)


def _check_folder(folder: Path, digest: str) -> None:
    """Refuse to overwrite a model of another training."""
    if not storage.is_local(folder):
        raise DataError(f"{folder}: models are kept on a disk", "choose a local folder")
    path = folder / _CARD
    card = read_json(path, "train") if path.exists() else None
    if path.exists() and (not isinstance(card, dict) or card.get("run_digest") != digest):
        raise CheckpointError(
            f"{folder}: has a model of other settings, data or code",
            "choose another folder, or remove this one",
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use this number of CPU threads in the block: another number changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Reporter:
    """Reports rows of metrics to a function, and never asks for a stop."""

    def __init__(self, progress: Callable[[Row], object] | None) -> None:
        self.progress = progress

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        pass

    def metrics(self, row: Row, seconds: float) -> None:
        if self.progress is not None:
            self.progress(row)

    def saved(self, row: Row) -> None:
        pass

    def requested(self) -> Request:
        return Request.NOTHING


def _settings(params: Settings, seed: int | None) -> Params:
    if isinstance(params, Mapping):
        values: dict[str, Any] = plain(params)
        in_memory = {
            "name": "arrays",
            "path": IN_MEMORY,
            "val_fraction": 0.0,
            "test_fraction": 0.0,
        }
        dataset = values.get("dataset", {})
        is_arrays = isinstance(dataset, Mapping) and dataset.get("name", "arrays") == "arrays"
        if isinstance(cluster_section := values.get("cluster", {}), Mapping):
            values["cluster"] = {"workers": 1, **cluster_section}
        values |= {"dataset": {**in_memory, **dataset}} if is_arrays else {}
        values |= {} if seed is None else {"seed": seed}
        return config.from_values(values, Path("settings"))
    if isinstance(params, Params):
        return params if seed is None else dataclasses.replace(params, seed=seed)
    path = Path(params)
    if not path.is_file() and path.name == str(params) and not path.suffix:
        recipes = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
        path = RECIPES / f"{params}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"{params}: neither a parameter file nor a recipe"
                + ("" if recipes else f" (no recipes in {RECIPES})"),
                nearest(str(params), recipes) if recipes else "write a parameter file, or a dict",
            )
    return config.load(path, seed=seed)


def _prepared(params: Params, data: Data, work: Path) -> tuple[Params, shards.Index]:
    """Return the settings with the data set that the data are, and the index of its shards."""
    if isinstance(data, str | Path):
        folder = storage.location(data)
        if Path(data).is_file():
            raise DataError(
                f"{data}: is a file, not a folder of prepared data",
                "read it into an array, or set dataset: {name: arrays, path: ...} and leave data"
                " out",
            )
        if not (folder / shards.INDEX).exists() and (folder / "dataset" / shards.INDEX).exists():
            folder = folder / "dataset"  # of the folder that stage prepare wrote
        return params, shards.read_index(folder)
    if isinstance(data, Dataset):
        name = plugin_name(params.dataset) or "arrays"
        return params, shards.write(work / "dataset", name, data)
    if isinstance(data, tuple) and len(data) != 2:
        raise DataError(
            f"data: expected samples, or (samples, labels), found a tuple of {len(data)}"
        )
    x, y = data if isinstance(data, tuple) else (data, None)
    if plugin_name(params.dataset) != "arrays":
        of_arrays = arrays.Config(path=IN_MEMORY, val_fraction=0.0, test_fraction=0.0)
        params = dataclasses.replace(params, dataset=of_arrays)
    return params, shards.write(work / "dataset", "arrays", _dataset(params.dataset, x, y, work))


def _dataset(config: arrays.Config, x: Array, y: Array | None, work: Path) -> Dataset:
    """Return the data set of samples ``(n, ...)`` and labels ``(n,)``, read as a file of them."""
    path = work / "data.npz"
    content = {"images": _numpy(x)} | ({} if y is None else {"labels": _numpy(y)})
    np.savez(path, **content)  # type: ignore[arg-type]
    try:
        data = arrays.load(dataclasses.replace(config, path=str(path)))
    except DataError as refused:
        raise DataError(refused.what.replace(str(path), IN_MEMORY), refused.fix) from None
    return data._replace(source=IN_MEMORY)


def _numpy(values: Array) -> npt.NDArray[Any]:
    """Return an array of numbers or strings. Raise :class:`DataError` for anything else."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if array.dtype.kind in "OT" and all(isinstance(value, str) for value in array.flat):
            array = array.astype(np.str_)  # names, as pandas keeps them
    except (TypeError, ValueError) as failed:
        raise DataError(
            f"{IN_MEMORY}: {failed}", "give arrays of float32, such as x.float() in torch"
        ) from None
    if array.dtype.kind not in "biufU":
        raise DataError(
            f"{IN_MEMORY}: expected samples (n, ...) as an array of numbers and labels (n,) of"
            f" integers or strings, found {type(values).__name__} with values of type"
            f" {array.dtype}",
            "pass NumPy arrays or tensors, or the path of a folder of prepared data",
        )
    if np.ma.is_masked(values):
        raise DataError(
            f"{IN_MEMORY}: has masked values, which would be learnt as what they hide",
            "leave out these samples, or fill the values first",
        )
    return array
