"""A trained model as a folder: training exports it; evaluation, registry and serving load it.

``energy.safetensors`` has the weights (moving averages), ``generator.safetensors`` and similar
files those of the other players, ``energy-00.safetensors`` those at the end of an earlier task,
``chains.safetensors`` the replayed chains, and ``model.json`` all that is needed to build the
networks, and the lineage. Nothing in the folder can run code.
"""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ebm_dist import config
from ebm_dist.chains.build import build_kernel
from ebm_dist.config import TRAINING, Params
from ebm_dist.data import shards
from ebm_dist.data.shards import Index
from ebm_dist.energies import EnergyModel, HasConditionals, is_conditional, iterate_power
from ebm_dist.errors import DataError
from ebm_dist.files import encode, read_tensors, sha256, write_json
from ebm_dist.generators import GeneratorModel
from ebm_dist.objectives import build_players
from ebm_dist.samplers import Kernel
from ebm_dist.storage import write_whole
from ebm_dist.training import checkpoint, state

_CARD, _CHAINS, _PLAYER, _EARLIER = (
    "model.json",
    "chains.safetensors",
    "{}.safetensors",
    "energy-{:02d}.safetensors",
)
# The averages have other largest singular values than the last weights, which set the buffers.
_POWER_ITERATIONS = 15
_MAX_CAPTION = 10  # names
_PART = 1000  # samples of a forward pass


class OnGpu(EnergyModel):
    """An energy computed on a GPU, for positions ``(n, *shape)`` and labels on the CPU.

    Evaluations and chains use it like any other energy.
    """

    def __init__(self, network: EnergyModel) -> None:
        super().__init__()
        self.network = network.cuda()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        energy: Tensor = self.network(x.cuda(), None if y is None else y.cuda())
        return energy.to(x.device)


def _placed(energy: EnergyModel) -> EnergyModel:
    return (
        OnGpu(energy)
        if torch.cuda.is_available() and not isinstance(energy, HasConditionals)
        else energy
    )


class TrainedModel(NamedTuple):
    """A model loaded from its folder."""

    energy: EnergyModel
    """Frozen, in evaluation mode; computed on the GPU if there is one (:class:`OnGpu`)"""
    chains: Tensor
    """Positions ``(capacity, *shape)`` of the replay buffer at the end of training"""
    labels: Tensor
    """Labels ``(capacity,)`` of the chains"""
    params: Params
    """Settings of the training"""
    card: dict[str, Any]
    """Shape, bounds, number of classes, digests, steps"""
    previous_tasks: tuple[EnergyModel, ...] = ()
    """The energy at the end of each earlier task, where classes were learnt in tasks"""
    other_players: Mapping[str, nn.Module] = MappingProxyType({})
    """The players besides the energy, frozen"""

    @property
    def generator(self) -> GeneratorModel:
        """The generator. Raise :class:`DataError` where the objective trains none."""
        if "generator" not in self.other_players:
            raise DataError(
                f"this model has no generator, only {', '.join(['energy', *self.other_players])};"
                " train one with objective meg"
            )
        return cast(GeneratorModel, self.other_players["generator"])

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Bounds of the data and of chains; None where there are none."""
        return None if self.card["bounds"] is None else tuple(self.card["bounds"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; the numbers where the data have no names."""
        return shards.class_names(self.card)

    @property
    def classes_caption(self) -> str:
        """Caption of samples that have each class in turn; "" for an unconditional model."""
        if not is_conditional(self.params):
            return ""
        names = self.class_names[: self.card["num_classes"]]
        more = ", ..." if len(names) > _MAX_CAPTION else ""
        return f"; classes {', '.join(names[:_MAX_CAPTION])}{more} in turn"

    def to_model(self, x: npt.NDArray[Any]) -> Tensor:
        """Convert samples ``(n, *shape)`` in the units of requests to model inputs, float32.

        They are standardised if the training data were, and unchanged otherwise.
        """
        standardisation = shards.standardisation(self.card)
        with np.errstate(over="ignore"):  # infinity is refused by requests
            x = standardisation.apply(x) if standardisation else x.astype(np.float32)
        return torch.from_numpy(x)

    def from_model(self, x: Tensor) -> Tensor:
        """Convert model samples ``(n, *shape)`` to the units of requests."""
        standardisation = shards.standardisation(self.card)
        return torch.from_numpy(standardisation.undo(x.numpy())) if standardisation else x

    @torch.no_grad()
    def energies(self, x: Tensor) -> Tensor:
        """Return energies ``(n,)`` of samples ``(n, *shape)``.

        For a conditional model, they are ``(E(x, y) - m_y) / s_y`` of the likeliest ``y``, where
        ``m_y`` and ``s_y`` are mean and standard deviation of the energies of the training data of
        class y. Chains that keep their label determine neither the constant nor the scale of each
        class's energies. The likeliest class is that of ``p(y | x)`` where the model has learnt
        it, else the one with the lowest normalised energy.
        """
        if not is_conditional(self.params):
            return _energies(self.energy, x)
        labels = self.likeliest(x)
        mean, sd = self.class_energies
        return (_energies(self.energy, x, labels) - mean[labels]) / sd[labels]

    @property
    def class_energies(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation ``(num_classes,)`` of the energies of each class.

        They are of the training data under their labels, for a conditional model.
        """
        mean, sd = (torch.tensor(self.card["class_energies"][name]) for name in ("mean", "sd"))
        return mean, sd

    @torch.no_grad()
    def likeliest(self, x: Tensor) -> Tensor:
        """Return the likeliest class ``(n,)`` of each sample, for a conditional model.

        It is that of ``p(y | x)`` where the model has learnt it, else the one with the lowest
        energy, normalised by mean and standard deviation of the class.
        """
        energies, (mean, sd) = self.energies_by_class(x), self.class_energies
        return (energies if self.knows_labels else (energies - mean) / sd).argmin(dim=1)

    @property
    def knows_labels(self) -> bool:
        """Whether the model has learnt ``p(y | x) = softmax(-E(x, y) / T)``.

        T is ``objective.label_temperature``.
        """
        return self.params.objective.label_temperature is not None

    @torch.no_grad()
    def energies_by_class(self, x: Tensor) -> Tensor:
        """Return ``E(x, y)`` of each class ``(n, num_classes)``, for a conditional model."""
        labels = (torch.full((len(x),), k) for k in range(self.card["num_classes"]))
        return torch.stack([_energies(self.energy, x, y) for y in labels], dim=1)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """Return ``p(y | x) = softmax(-E(x, y) / T)``, ``(n, num_classes)``.

        Raise :class:`DataError` where the model has not learnt it.
        """
        if not self.knows_labels:
            raise DataError(
                "this model has learnt no p(y | x); train one with objective semi_supervised, or"
                " with objective.label_temperature"
            )
        logits: Tensor = -self.energies_by_class(x) / self.params.objective.label_temperature
        return logits.softmax(dim=1)

    def kernel(self) -> Kernel:
        """Return the sampler that the model was trained with."""
        return build_kernel(self.params, bounds=self.bounds)


@torch.no_grad()
def _energies(energy: EnergyModel, x: Tensor, y: Tensor | None = None) -> Tensor:
    parts = zip(x.split(_PART), [None] * len(x) if y is None else y.split(_PART), strict=False)
    return torch.cat([energy(*part) for part in parts])


def _class_energies(
    energy: EnergyModel, data: Iterable[tuple[Tensor, Tensor]], num_classes: int
) -> dict[str, list[float]]:
    """Return mean and standard deviation of the energies of each class's data, by its label."""
    placed = _placed(energy)
    parts = [(_energies(placed, *part).double(), part[1]) for part in data]
    energies, y = map(torch.cat, zip(*parts, strict=True))
    by_class = [energies[y == k] for k in range(num_classes)]
    return {
        "mean": [e.mean().item() for e in by_class],
        "sd": [max(e.std(correction=0).item(), 1e-12) for e in by_class],
    }


def export(
    run: Path,
    folder: Path,
    params: Params,
    index: Index,
    digest: str,
    *,
    tars: range | None = None,
) -> dict[str, Any]:
    """Write the model of a finished run.

    Its bits are a function of the last checkpoint and the training data, of which only ``tars`` are
    read if they are not None. Return the history of metrics and the seconds of training. Raise
    :class:`DataError` for a run that has not ended.
    """
    final = checkpoint.latest(run, digest)
    if final is None or checkpoint.verify(final, digest) < params.train.num_steps:
        raise DataError(f"{run}: training has not ended; run 'dvc repro train'")
    players, chains = _read(final, params, index)
    energy = cast(EnergyModel, players["energy"])
    files = {_PLAYER.format(name): player.state_dict() for name, player in players.items()} | {
        _CHAINS: chains
    }
    files |= {
        _EARLIER.format(task): network.state_dict()
        for task, network in enumerate(_read_previous_tasks(final, params, index))
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        write_whole(folder / name, encode(tensors))
    write_json(
        folder / _CARD,
        {
            **_about(index),
            "run_digest": digest,
            "num_steps": params.train.num_steps,
            "class_energies": _class_energies(
                energy, shards.read_parts(index, "train", _PART, tars), index.num_classes
            )
            if is_conditional(params)
            else {},
            "params": params.as_dict(*TRAINING),
            "sha256": {name: sha256(folder / name) for name in files},
        },
    )
    return {"history": state.read_history(final), "seconds": state.read_progress(final).seconds}


def from_checkpoint(folder: Path, params: Params, index: Index) -> TrainedModel:
    """Load the model of a checkpoint: the averages of the weights, and the chains.

    The energies of a conditional model are not normalised: that needs the training data.
    """
    players, chains = _read(folder, params, index)
    card = _about(index) | {
        "class_energies": {"mean": [0.0] * index.num_classes, "sd": [1.0] * index.num_classes}
    }
    return _trained(players, chains, params, card)


def _trained(
    players: Mapping[str, nn.Module],
    chains: Mapping[str, Tensor],
    params: Params,
    card: dict[str, Any],
    *earlier: EnergyModel,
) -> TrainedModel:
    others = {name: player.eval().requires_grad_(False) for name, player in players.items()}
    energy = _placed(cast(EnergyModel, others.pop("energy")))
    return TrainedModel(energy, chains["position"], chains["label"], params, card, earlier, others)


def _read(
    folder: Path, params: Params, index: Index
) -> tuple[Mapping[str, nn.Module], dict[str, Tensor]]:
    chains = state.read_chains(folder)
    if params.replay.temperatures:
        chains["position"] = chains["position"][:, 0].contiguous()  # the coldest replica
    return _rebuilt(state.read_averages(folder), params, index), chains


def _read_previous_tasks(folder: Path, params: Params, index: Index) -> list[EnergyModel]:
    tasks = state.read_previous_task_averages(folder)
    return [cast(EnergyModel, _rebuilt(averages, params, index)["energy"]) for averages in tasks]


def _rebuilt(averages: dict[str, Tensor], params: Params, index: Index) -> Mapping[str, nn.Module]:
    players = build_players(params, index.shape, index.num_classes)
    for name, player in players.items():
        player.load_state_dict(state.of_player(averages, name))
        iterate_power(player, _POWER_ITERATIONS)
    return players


def _about(index: Index) -> dict[str, Any]:
    return {
        "dataset": index.dataset,
        "source": index.source,
        "is_official": index.is_official,
        "shape": index.shape,
        "bounds": index.bounds,
        "num_classes": index.num_classes,
        "data_digest": index.digest,
        **({} if index.is_official else {"divisor": index.divisor}),
        **shards.described(index),
    }


def load(folder: Path | str) -> TrainedModel:
    """Load a model from its folder. Its files are checked against the hashes in ``model.json``.

    Raise :class:`DataError` where they differ.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / _CARD).read_bytes())
        for name, digest in card["sha256"].items():
            if sha256(folder / Path(name).name) != digest:
                raise DataError(
                    f"{folder / name}: differs from {_CARD}: altered; run 'dvc repro -f train'"
                )
        # the default of two workers would be too many for one logical shard
        params = config.from_values(card["params"] | {"cluster": {"workers": 1}}, folder / _CARD)
        players = build_players(params, tuple(card["shape"]), card["num_classes"])
        shards.class_names(card), shards.standardisation(card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as failed:
        raise DataError(
            f"{folder}: is not an exported model ({type(failed).__name__}: {failed}); run"
            " 'dvc repro train'"
        ) from None
    earlier = []
    try:
        for name, player in players.items():
            player.load_state_dict(read_tensors(folder / _PLAYER.format(name), "train"))
        for task in range(params.train.num_tasks - 1):
            earlier.append(
                copy.deepcopy(cast(EnergyModel, players["energy"])).eval().requires_grad_(False)
            )
            earlier[-1].load_state_dict(read_tensors(folder / _EARLIER.format(task), "train"))
        chains = read_tensors(folder / _CHAINS, "train")
        chains["position"], chains["label"]
    except (RuntimeError, KeyError) as failed:
        raise DataError(
            f"{folder}: the weights do not fit {_CARD} ({failed}); run 'dvc repro -f train'"
        ) from None
    return _trained(players, chains, params, card, *earlier)
