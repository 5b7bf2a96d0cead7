"""Choose chains by the settings.

Chains of a training step are plain, compiled, or in another precision: the same algorithm, other
last bits. Or they are tempered. Chains of a trained model with noise levels go over their ladder.
"""

from collections.abc import Sequence
from typing import Any

from ebm_dist.chains import tempering
from ebm_dist.chains.eager import Chains, TemperedChains
from ebm_dist.chains.ladder import ladder
from ebm_dist.config import Mismatch, Params, module_of
from ebm_dist.energies import EnergyModel
from ebm_dist.samplers import Bounds, Kernel


def build_chains(params: Params, energy: EnergyModel, kernel: Kernel, *, bounds: Bounds) -> Chains:
    """Build the chains of a training."""
    options, num_steps = params.train, params.sampler.num_steps
    if temperatures := params.replay.temperatures:
        temperature = temperature_of(params.sampler)
        return TemperedChains(energy, kernel, num_steps, temperatures, temperature, bounds)
    if not options.compile and options.precision == "float32":
        return Chains(energy, kernel, num_steps)
    from ebm_dist.chains.compiled import CompiledChains

    return CompiledChains(
        energy, kernel, num_steps, compiles=options.compile, precision=options.precision
    )


def build_kernel(params: Params, *, bounds: Bounds) -> Kernel:
    """Build the kernel that samples a trained energy: that of section ``sampler``.

    For an energy of noise levels it draws from the conditionals of the ladder, unless it goes over
    the levels itself.
    """
    sampler, sigmas = params.sampler, _ladder_of(params)
    kernel: Kernel = module_of(sampler).build(sampler, bounds=None if sigmas else bounds)
    return ladder(kernel, sigmas, sampler.num_steps, bounds=bounds) if sigmas else kernel


def _ladder_of(params: Params) -> tuple[float, ...]:
    """Return the levels that chains climb; () where the sampler goes over them itself."""
    goes_over_levels = getattr(module_of(params.sampler), "OVER_LEVELS", False)
    sigmas: tuple[float, ...] = () if goes_over_levels else params.objective.ladder
    return sigmas


def check_ladder(params: Params) -> None:
    """Raise :class:`Mismatch` where section ``sampler`` cannot draw the levels of a ladder."""
    if not _ladder_of(params):
        return
    kernel = module_of(params.sampler).build(params.sampler, bounds=None)
    if kernel.is_discrete or kernel.move is None:
        raise Mismatch("sampler.name", "cannot sample conditionals of noise levels; use langevin")
    temperature = temperature_of(params.sampler)
    if abs(temperature - 1) > 1e-6:
        raise Mismatch(
            "sampler",
            f"chains over a ladder of noise levels need the temperature 1, found {temperature:g}",
            "set sampler.temperature: 1, or for langevin noise_scale: (2 * step_size) ** .5",
        )


def temperature_of(sampler: Any) -> float:
    """Return T of the density ``exp(-E / T)`` that a sampler's settings stand for."""
    temperature: float = getattr(sampler, "temperature", 1.0)
    return temperature


def check_temperatures(key: str, temperatures: Sequence[float], params: Params) -> None:
    """Raise :class:`Mismatch` at ``key`` where section ``sampler`` cannot have these replicas."""
    sampler = params.sampler
    if params.objective.ladder or getattr(module_of(sampler), "OVER_LEVELS", False):
        raise Mismatch(key, "chains over noise levels need no temperatures; leave it out")
    if not temperature_of(sampler):
        raise Mismatch(key, "needs a sampler with noise; set sampler.noise_scale above 0")
    try:
        kernel = module_of(sampler).build(sampler, bounds=None)
        tempering.tempered(kernel, temperatures, bounds=None)
    except ValueError as error:
        raise Mismatch(key, str(error)) from None
