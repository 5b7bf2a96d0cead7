"""The state of a training run as the files of a checkpoint; only this module knows their names.

Rank 0 writes weights, averages, moments, previous tasks, history and progress. Every rank writes
the chains of its shards.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebm_dist.chains.replay import ReplayShard
from ebm_dist.files import encode, read_json, read_tensors
from ebm_dist.training import optim
from ebm_dist.training.reporter import Row

_WEIGHTS, _AVERAGES, _MOMENTS = (
    "weights.safetensors",
    "average.safetensors",
    "optimizer.safetensors",
)
_PREVIOUS_TASKS, _HISTORY, _PROGRESS = "earlier.safetensors", "history.json", "state.json"
_SELECTION = "selected.safetensors"
_CHAINS = "chains-{:05d}.safetensors"
_STAGE = "train"

Tensors = dict[str, Tensor]


class Progress(NamedTuple):
    """Progress of a run."""

    step: int
    seconds: float
    """Seconds of training so far"""
    rollbacks: int


def encode_chains(replay: Mapping[int, ReplayShard]) -> dict[str, bytes]:
    """Encode the chains of logical shards, by file name."""
    return {_CHAINS.format(shard): encode(chains.state_dict()) for shard, chains in replay.items()}


def encode_networks(
    players: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    previous_task_averages: Iterable[Tensors],
    history: list[Row],
    progress: Progress,
) -> dict[str, bytes]:
    """Encode what rank 0 writes, by file name."""
    return {
        _WEIGHTS: encode(named(players)),
        _AVERAGES: encode(named(averages)),
        _MOMENTS: encode(_moments(optimizers)),
        _PREVIOUS_TASKS: encode(
            {
                f"{i}.{k}": v
                for i, task in enumerate(previous_task_averages)
                for k, v in task.items()
            }
        ),
        _HISTORY: encode(history),
        _PROGRESS: encode(progress._asdict()),
    }


def encode_selection(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Encode the tensors of early stopping, given by name, by file name."""
    return {_SELECTION: encode(dict(tensors))}


def load_networks(
    folder: Path, players: Mapping[str, nn.Module], averages: Mapping[str, nn.Module]
) -> None:
    """Load weights and averages into networks.

    Raise KeyError or RuntimeError where they do not fit.
    """
    for name, networks in ((_WEIGHTS, players), (_AVERAGES, averages)):
        tensors = read_tensors(folder / name, _STAGE)
        for player, network in networks.items():
            network.load_state_dict(of_player(tensors, player))


def load_moments(folder: Path, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Load the moments of optimizers, with the memory layout of the weights."""
    moments = read_tensors(folder / _MOMENTS, _STAGE)
    for player, optimizer in optimizers.items():
        state: dict[int, Tensors] = {}
        for key, value in of_player(moments, player).items():
            index, name = key.split(".", 1)
            parameter = optimizer.param_groups[0]["params"][int(index)]
            state.setdefault(int(index), {})[name] = (
                optim.laid_out_as(parameter, value) if value.shape == parameter.shape else value
            )
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def load_chains(folder: Path, replay: Mapping[int, ReplayShard]) -> None:
    """Load the chains of logical shards. Raise ValueError where shapes or types differ."""
    for shard, chains in replay.items():
        chains.load_state_dict(read_tensors(folder / _CHAINS.format(shard), _STAGE))


def read_averages(folder: Path) -> Tensors:
    """Return the averages of all players' weights, as ``<player>.<name>``.

    They are those that early stopping has selected, if there are any, else those of the last step.
    """
    if (folder / _SELECTION).exists() and (best := of_player(read_selection(folder), "best")):
        return best
    return read_tensors(folder / _AVERAGES, _STAGE)


def read_selection(folder: Path) -> Tensors:
    """Return the state of early stopping."""
    return read_tensors(folder / _SELECTION, _STAGE)


def read_previous_task_averages(folder: Path) -> list[Tensors]:
    """Return the averages at the end of each earlier task, as ``<player>.<name>``."""
    tensors = read_tensors(folder / _PREVIOUS_TASKS, _STAGE)
    count = 1 + max((int(name.partition(".")[0]) for name in tensors), default=-1)
    return [of_player(tensors, str(task)) for task in range(count)]


def chain_files(folder: Path) -> list[Path]:
    """Return the files of chains, in the order of the logical shards."""
    return sorted(folder.glob("chains-*.safetensors"))


def read_chains(folder: Path) -> Tensors:
    """Return the chains of all logical shards.

    They are ``position (capacity, *shape)``, ``label``, ``age`` and ``count``.
    """
    shards = [read_tensors(path, _STAGE) for path in chain_files(folder)]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def read_progress(folder: Path) -> Progress:
    """Return the progress of the run."""
    progress = read_json(folder / _PROGRESS, _STAGE)
    return Progress(int(progress["step"]), float(progress["seconds"]), int(progress["rollbacks"]))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics up to the checkpoint."""
    history: list[dict[str, Any]] = read_json(folder / _HISTORY, _STAGE)
    return history


def named(networks: Mapping[str, nn.Module]) -> Tensors:
    """Return the tensors of all networks, as ``<player>.<name>``."""
    return {
        f"{player}.{name}": value
        for player, network in networks.items()
        for name, value in network.state_dict().items()
    }


def of_player(tensors: Mapping[str, Tensor], player: str) -> Tensors:
    """Return the tensors of one player, by name."""
    return {
        name.removeprefix(f"{player}."): value
        for name, value in tensors.items()
        if name.startswith(f"{player}.")
    }


def _moments(optimizers: Mapping[str, torch.optim.Optimizer]) -> Tensors:
    return {
        f"{player}.{index}.{name}": value
        for player, optimizer in optimizers.items()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
