"""Energies of table rows, each by an expert, and their sum on one scale.

Columns are standardised to u. The energy of a row is that of a product of experts (Hinton 2002),
each on the scale of its own training rows (Fisher 1932, section 21.1):

    E(x) = sum_k s(t_k(x)),   t_k(x) = -log P_k(x)
    s(t) = t up to 12, then 12 (1 + log(t / 12))

where P_k is the share of training rows with an energy of expert k at least as high. Above all of
them it falls exponentially, as fast as over the highest twentieth. s keeps one expert from
overruling all others. Experts of distance have the energy log r_k of a row whose k-th nearest
training row is r_k away, left out of its own neighbours; networks have what they learnt.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors

from ebm_dist import config
from ebm_dist.api.training import train
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.energies import EnergyModel, build_energy
from ebm_dist.rng import numpy_stream

Array = npt.NDArray[np.float64]
State = dict[str, Array]
"""What an expert has learnt, by name"""

_MAX_ROWS = 20_000  # training rows of experts of distance
_MOST = 12.0  # nats, above which an expert counts by the logarithm
_TAIL, _LEAST_TAIL = 0.05, 5  # share and least number of rows from which P falls
_SMOOTHING = 0.5  # of whitened distances, in standard deviations of a column
_REACH = 20.0  # standard deviations beyond which networks see no difference
_PART = 4096  # rows at a time


class Options(NamedTuple):
    """Settings that all experts share; see :class:`ebm_dist.EnergyDetector`."""

    smoothing: float
    hidden: tuple[int, ...]
    num_steps: int
    batch_size: int
    lr: float
    leaves_out_copies: bool


class Expert(Protocol):
    """An energy of standardised rows ``(n, columns)``."""

    def fit(self, u: Array, options: Options, seed: int) -> tuple[State, Array]:
        """Learn; return the state and the energies ``(n,)`` of these rows."""
        ...

    def energies(self, state: State, u: Array, options: Options) -> Array:
        """Return the energies ``(m,)`` of rows."""
        ...


class Distance(NamedTuple):
    """``log r_k``, in standardised columns or in directions of equal variance."""

    k: int
    is_whitened: bool = False

    def fit(self, u: Array, options: Options, seed: int) -> tuple[State, Array]:
        rows = np.sort(numpy_stream(seed, "experts/rows").permutation(len(u))[:_MAX_ROWS])
        covariance = u.T @ u / len(u) + _SMOOTHING**2 * np.eye(u.shape[1])
        values, directions = np.linalg.eigh(covariance)
        whitening = directions / np.sqrt(values) if self.is_whitened else np.eye(u.shape[1])
        state = {"rows": u[rows], "whitening": whitening, "floor": np.zeros(())}
        apart = self._apart(state, u, options._replace(leaves_out_copies=True))
        positive = apart[apart > 0]
        state["floor"] = np.array(1e-6 * np.median(positive) if len(positive) else 1.0)
        return state, np.log(apart + state["floor"])

    def energies(self, state: State, u: Array, options: Options) -> Array:
        energies: Array = np.log(self._apart(state, u, options) + state["floor"])
        return energies

    def _apart(self, state: State, u: Array, options: Options) -> Array:
        """A row that equals a training row is scored without it, and so are training rows."""
        kept, whitening = state["rows"], state["whitening"]
        count = min(self.k + 1, len(kept))
        found = NearestNeighbors(n_neighbors=count).fit(kept @ whitening)
        apart = np.concatenate(
            [found.kneighbors(u[i : i + _PART] @ whitening)[0] for i in range(0, len(u), _PART)]
        )
        others: Array = apart[:, min(self.k, count) - 1]
        if not options.leaves_out_copies:
            return others
        known = {row.tobytes() for row in kept}  # distances to a copy have rounding errors
        is_copy = np.array([row.tobytes() in known for row in np.ascontiguousarray(u)])
        return np.where(is_copy, apart[:, -1], others)


class Network(NamedTuple):
    """An energy that one of the objectives learns."""

    energy: Mapping[str, Any]
    objective: Mapping[str, Any]
    follows_smoothing: bool = False
    """Whether the noise of the objective is ``Options.smoothing``, which it calls ``sigmas``"""

    def fit(self, u: Array, options: Options, seed: int) -> tuple[State, Array]:
        data = Dataset(
            splits={"train": Arrays(_clipped(u).astype(np.float32), None)},
            scale=1.0,
            bounds=None,
            num_classes=0,
            source="rows of a detector",
            is_official=True,
        )
        weights = train(self._settings(options, seed, u.shape[1]), data).energy.state_dict()
        # the prefix is that of a network on a GPU
        state = {k.removeprefix("network."): v.double().numpy() for k, v in weights.items()}
        return state, self.energies(state, u, options)

    def energies(self, state: State, u: Array, options: Options) -> Array:
        network = self._network(options, u.shape[1])
        network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        x = torch.from_numpy(_clipped(u))
        energies: Array = torch.cat([network(part) for part in x.split(_PART)]).numpy()
        return energies

    def _settings(self, options: Options, seed: int, num_columns: int) -> dict[str, Any]:
        h, own = options.smoothing, dict(self.objective)
        energy = {"hidden": [*options.hidden], **self.energy}
        if self.follows_smoothing:
            own["sigmas"], energy["confinement"] = [h], 1 / (1 + h**2)
        if own["name"] == "noise_contrastive":
            own["pretraining"] = min(300, options.num_steps // 2)
        return {
            "seed": seed,
            "energy": energy,
            "sampler": {"name": "langevin"},
            "objective": own,
            "replay": {"capacity": options.batch_size},
            "optimizer": {"lr": options.lr, "betas": [0.9, 0.999], "decay": 1.0},
            "train": {
                "num_steps": options.num_steps,
                "batch_size": options.batch_size,
                "num_shards": 1,
                "log_every": options.num_steps,
                "checkpoint_every": options.num_steps,
                # a Gaussian has a mean energy of half the number of columns
                "max_energy": 1e4 + 100.0 * num_columns,
            },
        }

    def _network(self, options: Options, num_columns: int) -> EnergyModel:
        """Return the network in float64: scores then do not depend on the rows of a batch."""
        params = config.from_values(
            {"dataset": {"name": "arrays", "path": ""}, "cluster": {"workers": 1}}
            | self._settings(options, 0, num_columns),
            Path("EnergyDetector"),
        )
        network = build_energy(params, (num_columns,), 0)
        return network.double().eval().requires_grad_(False)


EXPERTS: dict[str, Expert] = {
    "neighbours": Distance(5),
    "whitened": Distance(1, is_whitened=True),
    "denoising": Network({"name": "mlp"}, {"name": "score_matching"}, follows_smoothing=True),
    "conditionals": Network({"name": "conditionals"}, {"name": "masked_likelihood"}),
    "contrastive": Network(
        {"name": "mlp", "confinement": 1.0},
        {"name": "noise_contrastive", "generator": {"name": "gaussian"}, "data_noise": 0.25},
    ),
    "discrepancy": Network(
        {"name": "mlp", "confinement": 1.0}, {"name": "energy_discrepancy", "sigma": 0.5}
    ),
    "meg": Network(
        {"name": "mlp", "confinement": 1.0},
        {"name": "meg", "generator": {"name": "mlp", "latent_size": 16}, "num_energy_steps": 1},
    ),
}
"""Experts by name"""


def surprise(energies: Array, of_training: Array) -> Array:
    """Return ``s(-log P)`` in nats ``(m,)`` of energies, beside those of the training rows."""
    # as float32, in which a row has the same energy alone and in a batch
    energies, ordered = (v.astype(np.float32).astype(np.float64) for v in (energies, of_training))
    ordered, n = np.sort(ordered), len(of_training)
    at_least = n - np.searchsorted(ordered, energies, side="left")
    tail = ordered[-max(_LEAST_TAIL, round(_TAIL * n)) :]
    low, high = np.percentile(ordered, [16, 84])
    spread = max((high - low) / 2, 1e-3)
    fall = max(float((tail - tail[0]).mean()), 1e-3 * spread)
    t = -np.log((at_least + 1) / (n + 1)) + (energies - ordered[-1]).clip(min=0) / fall
    high_t = _MOST * (1 + np.log(np.maximum(t, _MOST) / _MOST))
    surprises: Array = np.where(t > _MOST, high_t, t)
    return surprises


def _clipped(u: Array) -> Array:
    return u.clip(-_REACH, _REACH)
