"""Requests to a trained model, arrays in and arrays out. MLflow and Ray Serve use them.

The *work* of a request is samples x evaluations of the energy x values per sample. A step of a
chain is one evaluation, and so is the energy of a class. A server limits the work of one request,
and computes one *large* request at a time, so that small ones need not wait for it.
"""

import contextlib
import reprlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ebm_dist.energies import frozen, given, is_conditional
from ebm_dist.errors import BusyError, DataError, RequestError
from ebm_dist.models.trained import TrainedModel
from ebm_dist.rng import stream
from ebm_dist.samplers import noise, run_chain

MAX_SAMPLES, MAX_STEPS = 1000, 10000
MAX_WORK, SMALL_WORK = 10_000_000, 500_000
_MAX_INT = 2**63  # type long of the registered signature
_ROUNDING = 1e-6  # of float32, as a fraction of the interval of the bounds


class Limits:
    """The limits of a server, which its threads share.

    Of a request: ``max_work``. Of all requests: one above ``SMALL_WORK`` is computed at a time, and
    at most ``max_large`` are accepted, because each holds a thread while it waits.
    """

    def __init__(self, max_work: int, max_large: int) -> None:
        self.max_work = max_work
        self._places = threading.BoundedSemaphore(max_large)
        self._computation = threading.Lock()

    @contextlib.contextmanager
    def admitted(self, num_samples: int, evaluations: int, num_values: int) -> Iterator[None]:
        """Wait for the turn of a request. Raise :class:`RequestError`, :class:`BusyError`."""
        work = num_samples * evaluations * num_values
        if work > self.max_work:
            raise RequestError(
                f"{num_samples} samples x {evaluations} evaluations of the energy x {num_values}"
                f" values = {work} is above the limit of this server, {self.max_work}",
                "ask for fewer samples or steps, or split the request",
            )
        if work <= SMALL_WORK:
            yield
            return
        if not self._places.acquire(blocking=False):
            raise BusyError(
                f"too many requests above {SMALL_WORK} samples x evaluations x values at a time",
                "ask again later",
            )
        try:
            with self._computation:
                yield
        finally:
            self._places.release()


class Options(NamedTuple):
    """Parameters of a request. The defaults are those of the registered signature."""

    task: str = "energy"
    """``energy``, ``classify``, ``sample`` or ``complete``"""
    num_steps: int = 100
    """Steps of the chains of ``sample`` and ``complete``"""
    seed: int = 0
    """Seed of the chains: equal seeds give equal answers"""
    label: int = -1
    """Class to sample or complete, of a conditional model; -1: each in turn"""
    hidden_rows: int = 0
    """Lower rows of each image that ``complete`` replaces; 0: half of the rows"""


def answer(
    model: TrainedModel,
    samples: Any,
    options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> npt.NDArray[np.float32]:
    """Answer a request about samples ``(n, *shape)``.

    ``energy`` returns ``(n,)`` energies; ``classify`` ``(n, num_classes)`` probabilities;
    ``sample`` the ends ``(n, *shape)`` of chains from noise, as many as there are samples (their
    values do not matter); ``complete`` the samples, with their lower rows drawn by chains. Samples
    are in the units of the data, and answers are finite. Raise :class:`RequestError`, with
    ``limits`` also for what a server refuses.
    """
    unknown = set(options or {}) - set(Options._fields)
    if unknown:
        raise RequestError(
            f"unknown parameter {_short(*sorted(unknown))}; use {', '.join(Options._fields)}"
        )
    request = Options(**(options or {}))
    for name, default in Options._field_defaults.items():
        value = getattr(request, name)
        if not isinstance(value, type(default)) or isinstance(value, bool):
            raise RequestError(
                f"{name} must be of type {type(default).__name__}, found {_short(value)}"
            )
        if isinstance(value, int) and not -_MAX_INT <= value < _MAX_INT:
            raise RequestError(f"{name} must be an integer of 64 bits, found a longer one")
    if not 1 <= request.num_steps <= MAX_STEPS:
        raise RequestError(f"num_steps must be from 1 to {MAX_STEPS}, found {request.num_steps}")
    if request.task not in TASKS:
        raise RequestError(f"unknown task {_short(request.task)}; use {', '.join(TASKS)}")
    x = _checked(samples, model, has_values=request.task != "sample")
    if request.task in ("sample", "complete") and len(x) > MAX_SAMPLES:
        raise RequestError(f"at most {MAX_SAMPLES} samples per request, found {len(x)}")
    cost = (len(x), _evaluations(model, request), x[0].size)
    try:
        with limits.admitted(*cost) if limits else contextlib.nullcontext():
            result = TASKS[request.task](model, model.to_model(x), request)
        if request.task in ("sample", "complete"):
            result = model.from_model(result)
        result = result.float()
    except DataError as failed:  # this model does not support the task
        raise RequestError(str(failed)) from None
    if not result.isfinite().all():
        raise RequestError(
            f"{request.task}: the energies of these samples overflow, or the chains diverged",
            f"expected samples like the training data, found values from {x.min():.3g} to"
            f" {x.max():.3g}; or ask for fewer steps",
        )
    return result.numpy()


def _evaluations(model: TrainedModel, options: Options) -> int:
    if options.task in ("sample", "complete"):
        return options.num_steps
    return int(model.card["num_classes"]) if is_conditional(model.params) else 1


def _short(*values: Any) -> str:
    return ", ".join(reprlib.repr(value) for value in values[:3])  # a message of any request


def class_names(
    model: TrainedModel, count: int, options: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Return the names of the classes in the answer to a valid request of ``count`` samples.

    They are those of the columns of ``classify``, those of the samples that a conditional model
    draws or completes, and else ().
    """
    request = Options(**(options or {}))
    if request.task == "classify":
        return model.class_names[: model.card["num_classes"]]
    labels = _labels(model, count, request) if request.task in ("sample", "complete") else None
    return () if labels is None else tuple(model.class_names[k] for k in labels)


def _checked(samples: Any, model: TrainedModel, has_values: bool) -> npt.NDArray[np.float64]:
    """Return samples as float64, if they are finite and in the bounds of the data."""
    shape = tuple(model.card["shape"])
    try:
        x = np.asarray(samples)
    except (ValueError, TypeError, OverflowError) as failed:
        raise RequestError(f"not an array of numbers: {failed}") from None
    if x.dtype.kind not in "biuf":
        raise RequestError(f"not an array of numbers: found {x.dtype}")
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape or len(x) == 0:
        raise RequestError(
            f"expected samples of shape (n, {', '.join(map(str, shape))}), n at least 1,"
            f" found {x.shape}"
        )
    x = x.astype(np.float64)
    if not model.to_model(x).isfinite().all():
        raise RequestError("samples must be finite; found NaN, infinity or values beyond float32")
    if has_values and model.bounds and x.size:
        (low, high), ends = model.bounds, (float(x.min()), float(x.max()))
        margin = _ROUNDING * (high - low)
        if ends[0] < low - margin or ends[1] > high + margin:
            raise RequestError(
                f"samples must lie in the bounds of the data, {low:g} to {high:g}; found"
                f" {ends[0]:g} to {ends[1]:g}",
                "scale them as the data were",
            )
    return x


def _energy(model: TrainedModel, x: Tensor, options: Options) -> Tensor:
    return model.energies(x)


def _classify(model: TrainedModel, x: Tensor, options: Options) -> Tensor:
    return model.classify(x)


def _labels(model: TrainedModel, count: int, options: Options) -> Tensor | None:
    if not is_conditional(model.params):
        return None
    num_classes = model.card["num_classes"]
    if not -1 <= options.label < num_classes:
        names = ", ".join(f"{k}: {name}" for k, name in enumerate(model.class_names[:20]))
        raise RequestError(
            f"label must be below {num_classes}, or -1 for each in turn; found {options.label}"
            f" (classes {names})"
        )
    return (
        torch.arange(count) % num_classes
        if options.label < 0
        else torch.full((count,), options.label)
    )


def _sample(model: TrainedModel, x: Tensor, options: Options) -> Tensor:
    start = noise(tuple(x.shape), model.bounds, stream(options.seed, "sample/start"))
    with frozen(model.energy):
        target = given(model.energy, _labels(model, len(x), options))
        return run_chain(
            model.kernel(), target, start, options.num_steps, stream(options.seed, "sample/chain")
        )[0]


def _complete(model: TrainedModel, x: Tensor, options: Options) -> Tensor:
    if x.ndim != 4:
        raise RequestError(
            f"only images can be completed; samples of this model have shape {tuple(x.shape[1:])}"
        )
    count = options.hidden_rows or x.shape[2] // 2
    if not 0 < count < x.shape[2]:
        raise RequestError(
            f"hidden_rows must be from 1 to {x.shape[2] - 1}, found {options.hidden_rows}"
        )
    visible, hidden = x[:, :, :-count], x[:, :, -count:]
    start = noise(tuple(hidden.shape), model.bounds, stream(options.seed, "complete/start"))
    with frozen(model.energy):
        energy = given(model.energy, _labels(model, len(x), options))

        def target(rows: Tensor) -> Tensor:
            return energy(torch.cat([visible, rows], dim=2))

        if not target(start).isfinite().all():
            raise RequestError("the energies of these samples overflow; expected smaller values")
        end, _ = run_chain(
            model.kernel(), target, start, options.num_steps, stream(options.seed, "complete/chain")
        )
    return torch.cat([visible, end], dim=2)


TASKS: Mapping[str, Callable[[TrainedModel, Tensor, Options], Tensor]] = {
    "energy": _energy,
    "classify": _classify,
    "sample": _sample,
    "complete": _complete,
}
