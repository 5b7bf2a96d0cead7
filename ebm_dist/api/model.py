"""A trained model for use from Python: arrays or tensors in, and the same kind out."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebm_dist.api._surroundings import usual
from ebm_dist.api.sampling import check_counts, check_seed
from ebm_dist.config import plugin_name
from ebm_dist.data import shards
from ebm_dist.energies import is_conditional, score
from ebm_dist.errors import DataError
from ebm_dist.models import TrainedModel, requests
from ebm_dist.registry import versions

X = TypeVar("X", npt.NDArray[Any], Tensor)
_PART = 1000  # samples of one forward pass, as in evaluation
_ROUNDING = 1e-6  # of float32, as a fraction of the interval of the bounds


@usual()
def load(model: str | Path) -> "Model":
    """Load a trained model: its folder, a registered version, or a shipped model.

    A version is ``models:/name@alias`` or ``models:/name/version``. ``ebm-dist check`` lists the
    names of the shipped models. Raise :class:`DataError` for a folder that is not a model and an
    unknown name, :class:`RegistryError` if the registry does not have the version.
    """
    return Model(*versions.load(model))


class Model(TrainedModel):
    """A :class:`TrainedModel` with methods for arrays and tensors.

    NumPy arrays are in the units of the data, as requests to a served model are, and answers have
    the same bits. Tensors are inputs of the network, of any float type, on any device. Both differ
    only where the columns of the data were standardised: ``to_model`` and ``from_model`` convert.
    Samples of images of bytes are ``x / 255`` in both.

    Samples have the shape ``(n, *shape)`` of ``card["shape"]``, are finite, and lie in ``bounds``.
    Each method raises :class:`DataError` for others, and for answers that are not finite.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Return data set, shape, energy and number of steps, without the weights."""
        return (
            f"Model(dataset={self.card['dataset']!r}, shape={tuple(self.card['shape'])},"
            f" energy={plugin_name(self.params.energy)!r}, num_steps={self.params.train.num_steps})"
        )

    @usual()
    def energies(self, x: X, *, keep_graph: bool = False) -> X:  # type: ignore[override]
        """Return energies ``(n,)`` of samples ``(n, *shape)``; low means likely.

        Those of a conditional model are normalised, see :meth:`TrainedModel.energies`. With
        ``keep_graph`` the answer has the graph of its gradient with respect to a tensor ``x``;
        raise :class:`DataError` for an array.
        """
        inputs = self._inputs(x)
        if not keep_graph:
            return self._answer(x, super().energies(inputs))
        if not isinstance(x, Tensor):
            raise DataError("keep_graph: arrays have no gradients", "pass a tensor, or use scores")
        return self._answer(x, self._differentiable(inputs))

    @usual()
    def scores(self, x: X) -> X:
        """Return scores ``-dE/dx (n, *shape)`` of samples ``(n, *shape)``, in the units of ``x``.

        E is what :meth:`energies` returns.
        """
        scores = score(self._differentiable, self._inputs(x))[1]
        standardisation = shards.standardisation(self.card)
        if standardisation and not isinstance(x, Tensor):
            scores = scores / torch.from_numpy(standardisation.sd)
        return self._answer(x, scores)

    @usual()
    def classify(self, x: X) -> X:  # type: ignore[override]
        """Return ``p(y | x)``, ``(n, num_classes)``, of samples ``(n, *shape)``.

        Raise :class:`DataError` where the model has not learnt it.
        """
        return self._answer(x, super().classify(self._inputs(x)))

    @usual()
    def sample(
        self, num_samples: int, *, num_steps: int = 100, label: int | None = None, seed: int = 0
    ) -> npt.NDArray[np.float32]:
        """Draw samples ``(num_samples, *shape)`` in the units of the data.

        They are the ends of chains of the sampler of the training from noise, after ``num_steps``.
        ``label``: the class to sample, of a conditional model; None stands for each in turn. Equal
        seeds give equal samples. :func:`ebm_dist.sample` with ``model.energy`` has other samplers
        and diagnostics. Raise :class:`RequestError` for a class that does not exist.
        """
        check_counts(num_samples=num_samples)
        inputs = torch.zeros(num_samples, *self.card["shape"])
        samples = self._task("sample", inputs, num_steps, label, seed)
        return self._answer(np.empty(0), self.from_model(samples))

    @usual()
    def complete(
        self,
        x: X,
        *,
        hidden_rows: int | None = None,
        num_steps: int = 100,
        label: int | None = None,
        seed: int = 0,
    ) -> X:
        """Return images ``(n, channels, h, w)`` with their lower rows drawn by chains.

        ``hidden_rows``: rows to replace; None stands for half of them. The chains are those of
        :meth:`sample`, and the upper rows stay as they are. Raise :class:`RequestError` for models
        of other samples than images, and for wrong numbers.
        """
        rows = {} if hidden_rows is None else {"hidden_rows": hidden_rows}
        if hidden_rows is not None:
            check_counts(hidden_rows=hidden_rows)
        completed = self._task("complete", self._inputs(x), num_steps, label, seed, **rows)
        return self._answer(x, completed if isinstance(x, Tensor) else self.from_model(completed))

    def _task(
        self, task: str, x: Tensor, num_steps: int, label: int | None, seed: int, **rows: int
    ) -> Tensor:
        """Answer as a served model does."""
        check_counts(num_steps=num_steps)
        check_seed(seed)
        if label is not None:
            check_counts(at_least=0, label=label)
            if not is_conditional(self.params):
                raise DataError("label: this model is not of single classes", "leave it out")
        options = requests.Options(task, num_steps, seed, -1 if label is None else label, **rows)
        return requests.TASKS[task](self, x, options)

    def _differentiable(self, x: Tensor) -> Tensor:
        """Return the values of ``energies (n,)`` of inputs ``(n, *shape)``, with their graph."""
        if not is_conditional(self.params):
            return torch.cat([self.energy(part) for part in x.split(_PART)])
        labels, (mean, sd) = self.likeliest(x.detach()), self.class_energies
        parts = zip(x.split(_PART), labels.split(_PART), strict=True)
        energies = torch.cat([self.energy(*part) for part in parts])
        return (energies - mean[labels]) / sd[labels]

    def _inputs(self, x: npt.NDArray[Any] | Tensor) -> Tensor:
        """Return samples as inputs of the network ``(n, *shape)``, float32 on the CPU."""
        shape = tuple(self.card["shape"])
        if np.ma.is_masked(x):
            raise DataError("x: has masked values", "fill them first")
        if not isinstance(x, Tensor):
            try:
                x = np.asarray(x)
            except ValueError as failed:
                raise DataError(f"x: {failed}", "pass samples of one shape") from None
        is_number = not x.dtype.is_complex if isinstance(x, Tensor) else x.dtype.kind in "biuf"
        if not is_number:
            raise DataError(f"x: expected numbers, found {x.dtype}", "convert it to floats")
        if x.ndim != len(shape) + 1 or tuple(x.shape[1:]) != shape or not len(x):
            raise DataError(
                f"x: expected samples of shape (n, {', '.join(map(str, shape))}), n at least 1,"
                f" found {tuple(x.shape)}",
                "reshape them; one sample x is x[None]",
            )
        inputs = x.cpu().float() if isinstance(x, Tensor) else self.to_model(x.astype(np.float64))
        inputs = inputs.clone() if inputs.is_inference() else inputs
        if not inputs.isfinite().all():
            raise DataError("x: has NaN, infinity or values beyond float32", "remove these samples")
        if self.bounds:
            (low, high), ends = self.bounds, (inputs.min().item(), inputs.max().item())
            margin = _ROUNDING * (high - low)
            if ends[0] < low - margin or ends[1] > high + margin:
                raise DataError(
                    f"x: must lie in the bounds of the data, {low:g} to {high:g}; found"
                    f" {ends[0]:g} to {ends[1]:g}",
                    "scale samples as the data were, such as x / 255 for bytes",
                )
        return inputs

    def _answer(self, x: X, answer: Tensor) -> X:
        """Return an answer in the kind of ``x``."""
        if not answer.isfinite().all():
            raise DataError(
                "the energies of these samples overflow, or the chains diverged",
                "expected samples like the training data; or take fewer steps",
            )
        return answer.to(x.device) if isinstance(x, Tensor) else answer.float().numpy()
