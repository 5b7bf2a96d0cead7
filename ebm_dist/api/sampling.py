"""Sample from any energy with the kernels of :mod:`ebm_dist.samplers`.

The energy is a torch module or function ``(n, *shape) -> (n,)``; low means likely,
``p(x) = exp(-E(x)) / Z``.
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache, partial
from numbers import Integral
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Generator, Tensor, nn

from ebm_dist.api._surroundings import differentiable
from ebm_dist.chains import cpu_layers, diagnostics
from ebm_dist.chains.adaptation import Scales, adapt
from ebm_dist.chains.block import Blocks
from ebm_dist.config import module_of, nearest, plugins
from ebm_dist.energies import EnergyFn, HasConditionals, frozen
from ebm_dist.errors import ConfigError, DataError, DivergedError
from ebm_dist.rng import stream
from ebm_dist.samplers import AdjustedState, Bounds, Kernel, StepSize

_FEWEST_DRAWS = 4  # for the diagnostics
_LEAST_WARMUP = 20  # steps, to estimate scales
_MAX_SHOWN = 5  # chains in a message


class Diagnostics(NamedTuple):
    """Convergence of chains (Vehtari et al. 2021), the worst over the coordinates that vary."""

    rhat: float
    """Largest split, rank-normalised R-hat. Do not use draws with a value above 1.01."""
    ess_bulk: float
    """Smallest effective sample size of the centre of the distribution"""
    ess_tail: float
    """Smallest effective sample size of the 5% and 95% quantiles"""
    num_constant: int
    """Coordinates where all draws of all chains are equal"""
    acceptance_rate: float
    """Share of accepted proposals after the warm-up; 1 for samplers that do not reject"""
    num_not_finite: int
    """Proposals after the warm-up with an energy or gradient that was not finite, all rejected"""
    step_size: float | None
    """Step size after the warm-up; None for a sampler without"""


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of several chains. Compare the chains by :attr:`diagnostics` before you use them."""

    x: Tensor
    """Positions ``(draws, chains, *shape)``"""
    acceptance_rate: float
    """Share of accepted proposals after the warm-up"""
    num_not_finite: int
    """Proposals after the warm-up with an energy or gradient that was not finite, all rejected"""
    step_size: float | None
    """Step size after the warm-up; None for a sampler without"""
    compile_seconds: float = 0.0
    """Seconds that first calls of compiled functions took"""
    scales: Tensor | None = None
    """Standard deviations ``(*shape)`` in units of which steps are made; None for 1"""

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """Diagnostics over all coordinates; NaN where nothing varies or with less than 4 draws."""
        x = self.x.transpose(0, 1)
        varies = (x != x[:1, :1]).flatten(0, 1).any(dim=0).cpu().numpy()
        largest = smallest_bulk = smallest_tail = float("nan")
        if varies.any() and len(self.x) >= _FEWEST_DRAWS:
            moving = x.cpu().numpy()[:, :, varies]
            largest = float(np.max(diagnostics.rhat(moving)))
            smallest_bulk = float(np.min(diagnostics.ess_bulk(moving)))
            smallest_tail = float(np.min(diagnostics.ess_tail(moving)))
        return Diagnostics(
            largest,
            smallest_bulk,
            smallest_tail,
            int((~varies).sum()),
            self.acceptance_rate,
            self.num_not_finite,
            self.step_size,
        )

    def to_arviz(self) -> Any:
        """Return the draws as ``arviz.InferenceData`` with the variable ``x``.

        Raise :class:`ConfigError` if arviz is not installed.
        """
        try:
            import arviz
        except ImportError:
            raise ConfigError(
                "to_arviz: arviz is not installed", "install with: pip install 'arviz<1'"
            ) from None
        return arviz.convert_to_inference_data({"x": self.x.transpose(0, 1).cpu().numpy()})


@differentiable()
def sample(
    energy: nn.Module | EnergyFn,
    x0: npt.NDArray[Any] | Tensor,
    sampler: str = "mala",
    *,
    num_samples: int = 1000,
    num_warmup: int = 500,
    thin: int = 1,
    bounds: Bounds = None,
    step_size: float | None = None,
    adapt_scales: bool = False,
    seed: int = 0,
    generator: Generator | None = None,
    compile: bool = False,
    **settings: Any,
) -> Draws:
    """Sample from ``exp(-energy(x))``, with one chain for each row of ``x0``.

    ``energy``: a module or function ``(n, *shape) -> (n,)``; ``(n, 1)`` is accepted. The energy of
    a row must not depend on the other rows. A module is used in evaluation mode and left as it was.

    ``x0``: starts ``(chains, *shape)``, floats of NumPy or torch. For a module with parameters they
    are converted to the type of its parameters and moved to their device.

    ``sampler``: ``"mala"``, ``"hmc"``, ``"metropolis"``, ``"langevin"``, or ``"gibbs"`` for an
    energy with conditionals. ``settings`` are those of its ``Config``, such as
    ``num_leapfrog=20`` for hmc; ``ebm-dist settings sampler`` lists them.

    Each chain makes ``num_warmup`` steps that are dropped, and then ``num_samples`` draws with
    ``thin`` steps from one to the next. Samplers that accept or reject adapt their step size in the
    warm-up, unless ``step_size`` is set; independent proposals without bounds need one.
    ``langevin`` does not reject, so it needs a ``step_size`` and has a bias that grows with it; its
    temperature is 1 unless ``noise_scale`` is set.

    ``adapt_scales``: also estimate the standard deviation of each coordinate in the first half of
    the warm-up, and make steps in units of it (a diagonal mass matrix). Coordinates of different
    scales, such as the parameters of a regression, then need far fewer steps. Without ``bounds``.

    ``bounds``: lowest and highest value of each coordinate; the density is zero outside.

    ``seed`` or ``generator``: the source of all random numbers. Equal seeds give equal draws, and
    the global generators are not used.

    ``compile``: compile some steps of all chains into one function. Draws differ in the last bits.
    Small targets are sampled some ten times faster; the first call takes up to a minute, a later
    one with the same energy object, settings and shape of ``x0`` nothing, and another process some
    seconds.

    Raise :class:`ConfigError` for wrong arguments, :class:`DataError` for starts or energies of a
    wrong shape or type, :class:`DivergedError` where the energy of a chain is not finite.
    """
    check_counts(num_samples=num_samples, thin=thin)
    check_counts(at_least=0, num_warmup=num_warmup)
    bounds = None if bounds is None else _checked_bounds(bounds)
    config, is_adaptive = _config(sampler, step_size, num_warmup, bounds, settings)
    _check_suits(sampler, energy)
    if adapt_scales:
        _check_adapts_scales(config, bounds, num_warmup if is_adaptive else 0)
    x = _start(x0, energy, bounds)
    generator = _generator(generator, seed, x.device)
    kernel = module_of(config).build(config, bounds=bounds)
    of_shape = x.shape, x.dtype
    blocks = (
        _compiled_blocks(_any_step_size(config), bounds, _Same(energy), of_shape)
        if compile
        else None
    )
    with ExitStack() as stack:
        if isinstance(energy, nn.Module):
            stack.enter_context(evaluating(energy))
        if isinstance(energy, nn.Module) and compile and x.device.type == "cpu":
            stack.enter_context(cpu_layers.fast_linear_layers(energy))
        target = energy if sampler == "gibbs" else Target(energy)
        blocks = blocks or Blocks(kernel, target)
        target, scales = blocks.target, None
        if isinstance(target, Target):
            target.scales = torch.ones_like(x[0]) if adapt_scales else None
        state, before = _checked_start(kernel, target, x), blocks.compile_seconds
        adapted = partial(
            adapt, target=target, generator=generator, bounds=bounds, move=blocks.step
        )
        if adapt_scales:
            found = Scales(num_warmup // 2)
            config, x = adapted(
                config, position=x, num_steps=num_warmup // 2, observe=found.observe
            )
            scales = found.estimate().to(x)
            cast(Target, target).scales = scales
            x, num_warmup = x / scales, num_warmup - num_warmup // 2
        if is_adaptive:
            config, x = adapted(config, position=x, num_steps=num_warmup)
            state = kernel.init(target, x)
        size: StepSize | None = kernel.step_size
        if _is_adjusted(config):  # a number would be compiled in
            size = torch.tensor(config.step_size, dtype=torch.float64)
        if num_warmup and not is_adaptive:
            last = x.new_empty((1, *x.shape))
            state, _, _ = _run(blocks, state, generator, size, last, num_warmup, "of the warm-up")
        draws = x.new_empty((num_samples, *x.shape))
        _, acceptance_rate, num_not_finite = _run(
            blocks, state, generator, size, draws, thin, "after the warm-up"
        )
    seconds = blocks.compile_seconds - before
    used = getattr(config, "step_size", None)
    if scales is not None:
        draws *= scales
    return Draws(draws, acceptance_rate, num_not_finite, used, seconds, scales)


def _any_step_size(config: Any) -> Any:
    """Return settings that are equal for all step sizes, if the kernel takes them as a tensor."""
    return dataclasses.replace(config, step_size=1.0) if _is_adjusted(config) else config


def _is_adjusted(config: Any) -> bool:
    return hasattr(module_of(config), "ACCEPTANCE")


class _Same:
    """An energy that equals only itself, also where its class defines equality."""

    def __init__(self, energy: EnergyFn) -> None:
        self.energy = energy

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.energy is self.energy

    def __hash__(self) -> int:
        return id(self.energy)


@lru_cache(maxsize=8)
def _compiled_blocks(config: Any, bounds: Bounds, same: _Same, of_shape: Any) -> Blocks:
    """Return compiled blocks, the same ones for equal settings, energy, and ``of_shape``.

    Torch refuses to compile one function for many shapes. The last eight stay in memory.
    """
    kernel = module_of(config).build(config, bounds=bounds)
    return Blocks(kernel, Target(same.energy), compiles=True)


def _run(
    blocks: Blocks,
    state: Any,
    generator: Generator,
    step_size: StepSize | None,
    draws: Tensor,
    thin: int,
    which: str,
) -> tuple[Any, float, int]:
    """Fill the draws; return the last state, the acceptance rate, and how many are not finite.

    Raise :class:`DivergedError` after an energy or position that is not finite.
    """
    accepted, num_not_finite, num_steps = [], 0, 0
    for block in blocks.run(state, generator, step_size, draws, thin):
        state = block.state
        accepted.append(block.acceptance)
        num_not_finite += int(block.num_not_finite.sum())
        if not block.is_finite.all():
            step = int(block.is_finite.all(dim=1).logical_not().nonzero()[0])
            raise DivergedError(
                f"step {num_steps + step + 1} {which}: the energy or position of"
                f" {_chains(~block.is_finite[step])} is not finite",
                "use a smaller step_size, bounds, or a sampler that rejects, such as mala",
            )
        num_steps += len(block.acceptance)
    return state, torch.cat(accepted).mean().item(), num_not_finite


class Target:
    """An energy with checked output: ``(n, *shape) -> (n,)``, of ``x`` in units of ``scales``."""

    def __init__(self, energy: EnergyFn) -> None:
        self.energy, self.scales = energy, cast(Tensor | None, None)

    def __call__(self, x: Tensor) -> Tensor:
        """Return energies ``(n,)``. Raise :class:`DataError` for an output of another shape."""
        energies = self.energy(x if self.scales is None else x * self.scales)
        if not isinstance(energies, Tensor) or energies.shape not in ((len(x),), (len(x), 1)):
            actual = (
                f"a tensor of shape {tuple(energies.shape)}"
                if isinstance(energies, Tensor)
                else type(energies).__name__
            )
            raise DataError(
                f"energy: expected a tensor of shape ({len(x)},) for x of shape {tuple(x.shape)},"
                f" found {actual}",
                "return one number for each row, for example with .flatten(1).sum(1)",
            )
        if x.requires_grad and not energies.requires_grad:
            raise DataError(
                "energy: its output has no gradient with respect to x",
                "compute it by torch from x, without detach or no_grad; or use sampler"
                " 'metropolis', which needs no gradient",
            )
        return energies.reshape(len(x))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Freeze a module in evaluation mode for the block, and restore each part of it after it."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with frozen(module):
            yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training


@torch.no_grad()
def _checked_start(kernel: Kernel, target: EnergyFn, x: Tensor) -> Any:
    """Return the state at ``x``. Raise :class:`DivergedError` where the energy is not finite."""
    state = kernel.init(target, x)
    is_finite = state.is_finite if isinstance(state, AdjustedState) else target(x).isfinite()
    if not is_finite.all():
        raise DivergedError(
            f"x0: the energy or its gradient is not finite at the start of {_chains(~is_finite)}",
            "start these chains where the energy is finite",
        )
    return state


def _chains(is_bad: Tensor) -> str:
    """Return the numbers of the chains where ``is_bad (n,)`` as text."""
    rows = is_bad.nonzero().flatten().tolist()
    more = f" and {len(rows) - _MAX_SHOWN} more" if len(rows) > _MAX_SHOWN else ""
    return f"chain {', '.join(map(str, rows[:_MAX_SHOWN]))}{more}"


def _start(x0: npt.NDArray[Any] | Tensor, energy: Callable[..., Any], bounds: Bounds) -> Tensor:
    x = x0.detach().clone() if isinstance(x0, Tensor) else _tensor(x0)
    if x.ndim < 2 or not x.numel():
        raise DataError(
            f"x0: expected starts (chains, *shape), found shape {tuple(x.shape)}",
            "give each chain a row, such as torch.randn(10, 2) for 10 chains in two dimensions",
        )
    if not x.is_floating_point():
        raise DataError(f"x0: expected floats, found {x.dtype}", "convert it, with x0.float()")
    if not x.isfinite().all():
        raise DataError("x0: has NaN or infinite values", "start chains at finite positions")
    if bounds is not None:
        low, high = bounds
        if x.min() < low or x.max() > high:
            raise DataError(
                f"x0: lies in {x.min():g} to {x.max():g}, outside the bounds {low:g} to {high:g}",
                "start chains within the bounds",
            )
    parameters = energy.parameters() if isinstance(energy, nn.Module) else iter(())
    first = next((p for p in parameters if p.is_floating_point()), None)
    return x if first is None else x.to(first)


def _checked_bounds(bounds: Any) -> tuple[float, float]:
    try:
        low, high = map(float, bounds)
        if -float("inf") < low < high < float("inf"):
            return low, high
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"bounds: expected two finite numbers, the lower one first, found {bounds}")


def _tensor(x0: npt.NDArray[Any]) -> Tensor:
    try:
        return torch.from_numpy(np.array(x0))
    except (TypeError, ValueError) as failed:
        raise DataError(
            f"x0: {failed}", "give starts (chains, *shape) as an array of floats"
        ) from None


def check_counts(at_least: int = 1, **counts: int) -> None:
    """Check that each argument is an integer of this size. Raise :class:`ConfigError`."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < at_least:
            raise ConfigError(f"{name}: expected an integer from {at_least} up, found {count!r}")


def _generator(generator: Generator | None, seed: int, device: torch.device) -> Generator:
    """Return the generator, or else that of the seed. Raise :class:`ConfigError` for others."""
    check_seed(seed)
    if generator is None:
        return stream(seed, "api/sample", device=device)
    if not isinstance(generator, Generator):
        raise ConfigError(
            f"generator: expected a torch.Generator, found {type(generator).__name__}",
            "leave it out and set seed",
        )
    if generator.device.type != device.type:
        raise ConfigError(
            f"generator: is on {generator.device}, the chains are on {device}",
            f"use torch.Generator({device.type!r})",
        )
    return generator


def _check_suits(sampler: str, energy: Any) -> None:
    """Raise :class:`ConfigError` if the sampler needs another kind of energy."""
    if sampler == "gibbs" and not isinstance(energy, HasConditionals):
        raise ConfigError(
            "sampler: gibbs needs an energy with conditionals (num_blocks, resample)",
            "choose another sampler",
        )
    if sampler == "ancestral":
        raise ConfigError(
            "sampler: ancestral needs an energy of noise levels",
            "draw with sample of a model that learnt them, or choose another sampler",
        )


def _check_adapts_scales(config: Any, bounds: Bounds, num_adaptive: int) -> None:
    """Raise :class:`ConfigError` if no scales can be estimated in so many steps of adaptation."""
    is_discrete = hasattr(config, "categories")
    if bounds is not None or is_discrete or num_adaptive < _LEAST_WARMUP:
        raise ConfigError(
            "adapt_scales: needs a sampler of continuous variables that adapts its step size, no"
            f" bounds, and a num_warmup of {_LEAST_WARMUP} or more",
            "choose mala, hmc or metropolis without step_size and bounds",
        )


def check_seed(seed: Any) -> None:
    """Check that a seed is an integer. Raise :class:`ConfigError`."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ConfigError(f"seed: expected an integer, found {seed!r}")


def _config(
    sampler: str,
    step_size: float | None,
    num_warmup: int,
    bounds: Bounds,
    settings: dict[str, Any],
) -> tuple[Any, bool]:
    """Return the ``Config`` of a sampler, and whether the warm-up adapts its step size."""
    names = plugins("ebm_dist.samplers")
    if sampler not in names:
        raise ConfigError(f"sampler: no {sampler!r}", nearest(str(sampler), names))
    module = importlib.import_module(f"ebm_dist.samplers.{sampler}")
    keys = [f.name for f in dataclasses.fields(module.Config) if f.name != "num_steps"]
    if step_size is not None:
        settings = {**settings, "step_size": step_size}
    for key in settings:
        if key not in keys:
            raise ConfigError(f"{sampler}: has no setting {key!r}", nearest(key, keys))
    is_independent = settings.get("proposal") == "noise"
    is_adaptive = hasattr(module, "ACCEPTANCE") and step_size is None and not is_independent
    if is_independent and step_size is None and bounds is None:
        raise ConfigError(
            "step_size: the acceptance rate does not tell how wide independent proposals should be",
            "set step_size to more than the target's standard deviation, or choose a walk",
        )
    if is_adaptive and not num_warmup:
        raise ConfigError(
            f"num_warmup: is 0, so the step size of {sampler} is not adapted",
            "set step_size, or num_warmup to some hundred steps",
        )
    if "step_size" in keys and not (is_adaptive or is_independent) and step_size is None:
        raise ConfigError(
            f"step_size: {sampler} accepts all proposals, so no warm-up can adapt it",
            "set step_size, or use a sampler that rejects, such as mala",
        )
    try:
        config = module.Config(**settings)
    except pydantic.ValidationError as failed:
        first = failed.errors()[0]
        expected = f"{first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
        raise ConfigError(f"{sampler}: {first['loc'][0]}: {expected}") from None
    if "noise_scale" in keys and "noise_scale" not in settings:
        config = dataclasses.replace(config, noise_scale=(2 * config.step_size) ** 0.5)
    return config, is_adaptive
