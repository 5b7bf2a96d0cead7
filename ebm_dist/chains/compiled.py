"""Compiled chains: several steps of a kernel in one compiled function, on a copy of the network.

The algorithm is that of :class:`ebm_dist.chains.eager.Chains`; only the last bits differ. On a GPU
the function is replayed as a CUDA graph, and the network may run in bfloat16.
"""

import copy
import logging
import operator

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize
from torch.profiler import record_function

from ebm_dist import faults
from ebm_dist.chains import compile_error, cpu_layers
from ebm_dist.chains.eager import Chains, Precision
from ebm_dist.energies import EnergyModel, given
from ebm_dist.samplers import ChainStats, Kernel, Randomness

_MOST_STEPS = 20  # per function: more take longer to compile and are hardly faster
_MOST_CHAINS = 4096  # per call on a CPU: activations of more chains do not fit into its caches


class CompiledChains(Chains):
    """Chains on a copy of the network, several steps per call; the kernel must have ``move``.

    ``compiles``: compile the steps. If torch.compile fails, a warning is logged and the steps run
    uncompiled. ``precision``: of the network; positions, noise and steps are always float32.
    """

    def __init__(
        self,
        energy: EnergyModel,
        kernel: Kernel,
        num_steps: int,
        *,
        compiles: bool,
        precision: Precision,
    ) -> None:
        super().__init__(energy, kernel, num_steps)
        self.dtype: torch.dtype = getattr(torch, precision)
        self.copy = _plain_copy(energy).to(self.dtype)
        on_gpu = next(energy.parameters()).is_cuda
        # one step of a wide network keeps the CPU busy, and more would take too long to compile
        most = 1 if compiles and cpu_layers.is_wide(self.copy) else _MOST_STEPS
        if compiles and not on_gpu and self.dtype == torch.float32:
            cpu_layers.replace_layers(self.copy)
        self.block = max(n for n in range(1, most + 1) if num_steps % n == 0)
        self.several = self._steps
        if compiles and on_gpu:
            self.several = torch.compile(self._steps, dynamic=False, mode="reduce-overhead")
        elif compiles:
            # C++ also around the kernels, and fused multiply-add instructions
            self.several = torch.compile(
                self._steps,
                dynamic=False,
                options={"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"},
            )

    @record_function("sampler")
    @torch.no_grad()
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator, num_done: int = 0
    ) -> tuple[Tensor, ChainStats]:
        assert self.kernel.draw is not None
        start, accepted = position, position.new_zeros(())
        parts = 1 if position.is_cuda else -(-len(position) // _MOST_CHAINS)
        label_parts = [None] * parts if labels is None else labels.tensor_split(parts)
        with parametrize.cached():
            for name, tensor in self.copy.state_dict(keep_vars=True).items():
                tensor.copy_(operator.attrgetter(name)(self.energy))
            cpu_layers.sync_weights(self.copy)
        for _ in range(self.num_steps // self.block):
            faults.point("chain.step")
            # step by step, for the same bits as Chains
            rows = [self.kernel.draw(1, position, generator) for _ in range(self.block)]
            randomness = [torch.cat(numbers) for numbers in zip(*rows, strict=True)]
            inputs = zip(
                position.tensor_split(parts),
                label_parts,
                zip(*(numbers.tensor_split(parts, dim=1) for numbers in randomness), strict=True),
                strict=True,
            )
            # also concatenate a single part: the next replay of a CUDA graph overwrites its output
            position, energy, score_norm, acceptance = map(
                torch.cat, zip(*(self._run(*part) for part in inputs), strict=True)
            )
            accepted = accepted + acceptance.mean()
        distance = (position - start).flatten(1).norm(dim=1).mean()
        acceptance_rate = accepted * self.block / self.num_steps
        return position, ChainStats(energy.mean(), score_norm.mean(), acceptance_rate, distance)

    def _run(
        self, position: Tensor, labels: Tensor | None, randomness: Randomness
    ) -> tuple[Tensor, ...]:
        try:
            return self.several(position, labels, randomness)
        except compile_error() as failed:
            logging.getLogger(__name__).warning(
                "torch.compile failed, chains run uncompiled: %s", str(failed).splitlines()[0]
            )
            self.several = self._steps
            return self.several(position, labels, randomness)

    def _steps(
        self, position: Tensor, labels: Tensor | None, randomness: Randomness
    ) -> tuple[Tensor, ...]:
        """Return positions ``(B, *shape)``, and energy, score norm and acceptance ``(B,)``."""
        conditional = given(self.copy, labels)

        def target(x: Tensor) -> Tensor:
            return conditional(x.to(self.dtype)).float()

        assert self.kernel.move is not None
        assert self.kernel.step_size is not None
        state, accepted = self.kernel.init(target, position), []
        for row in zip(*randomness, strict=True):
            state, info = self.kernel.move(target, state, row, self.kernel.step_size)
            accepted.append(info.is_accepted)
        return state.position, info.energy, info.score_norm, torch.stack(accepted).float().mean(0)


def _plain_copy(network: EnergyModel) -> EnergyModel:
    """Return a copy with plain weights of the current values instead of parametrised ones.

    ``remove_parametrizations`` would break the original, which shares its class with a deep copy.
    """
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            names = list(module.parametrizations)  # type: ignore[arg-type]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                setattr(module, name, nn.Parameter(weight))
    return copied.requires_grad_(False)
