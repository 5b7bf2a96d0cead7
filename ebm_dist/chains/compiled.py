"""Compiled chains: several steps of a kernel in one function made by ``torch.compile``, on a copy of the network.

The algorithm is that of :class:`ebm_dist.chains.run.Chains`; only the last bits differ. On a GPU the function is replayed as a CUDA
graph, and the network may run in bfloat16.
"""

import copy
import logging
import operator

import torch
from torch import Generator, Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.utils import parametrize
from torch.profiler import record_function

from ebm_dist import faults
from ebm_dist.chains import cpu_layers
from ebm_dist.chains.run import Chains, Precision
from ebm_dist.energies import EnergyModel, given
from ebm_dist.samplers import ChainStats, Kernel

_MOST_STEPS = 20  # at once: more hardly make faster code, but take longer to compile
_MOST_CHAINS = 4096  # at once on a CPU: activations of more, already in a small network, do not stay in its caches


class CompiledChains(Chains):
    """The same from a copy of the network, with the noise of several steps given at once; for a kernel that has ``steps``.

    ``compiles``: where torch.compile fails, the steps run as they are, after a warning. ``precision``: of the network; positions,
    noise and steps are float32 always.
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
        # one step of a wide network is work enough, and takes long enough to compile
        most = 1 if compiles and cpu_layers.is_wide(self.copy) else _MOST_STEPS
        if compiles and not on_gpu and self.dtype == torch.float32:
            cpu_layers.replace_layers(self.copy)
        self.block = max(n for n in range(1, most + 1) if num_steps % n == 0)
        self.several = self._steps
        if compiles and on_gpu:
            self.several = torch.compile(self._steps, dynamic=False, mode="reduce-overhead")
        elif compiles:
            # C++ also between the loops and products, and a product and a sum in one instruction
            self.several = torch.compile(
                self._steps,
                dynamic=False,
                options={"cpp_wrapper": True, "cpp.enable_floating_point_contract_flag": "fast"},
            )

    @record_function("sampler")
    @torch.no_grad()
    def __call__(
        self, position: Tensor, labels: Tensor | None, generator: Generator
    ) -> tuple[Tensor, ChainStats]:
        start, noise = position, position.new_empty(self.block, *position.shape)
        parts = 1 if position.is_cuda else -(-len(position) // _MOST_CHAINS)
        asked = [None] * parts if labels is None else labels.tensor_split(parts)
        with parametrize.cached():
            for name, own in self.copy.state_dict(keep_vars=True).items():
                own.copy_(operator.attrgetter(name)(self.energy))
            cpu_layers.sync_weights(self.copy)
        for _ in range(self.num_steps // self.block):
            faults.point("chain.step")
            for row in noise:  # one by one: the bits are those of Chains
                row.normal_(generator=generator)
            given_parts = zip(
                position.tensor_split(parts), asked, noise.tensor_split(parts, dim=1), strict=True
            )
            # concatenated also if there is one: a CUDA graph writes its output in the same place again
            position, energy, score_norm = map(
                torch.cat, zip(*(self._run(*part) for part in given_parts), strict=True)
            )
        moved = (position - start).flatten(1).norm(dim=1).mean()
        return position, ChainStats(energy.mean(), score_norm.mean(), position.new_ones(()), moved)

    def _run(
        self, position: Tensor, labels: Tensor | None, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            return self.several(position, labels, noise)
        except TorchDynamoException as failed:
            logging.getLogger(__name__).warning(
                "torch.compile failed, chains run uncompiled: %s", str(failed).splitlines()[0]
            )
            self.several = self._steps
            return self.several(position, labels, noise)

    def _steps(
        self, position: Tensor, labels: Tensor | None, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        target = given(self.copy, labels)
        assert self.kernel.step_many is not None
        state, info = self.kernel.step_many(
            lambda x: target(x.to(self.dtype)).float(), self.kernel.init(target, position), noise
        )
        return state.position, info.energy, info.score_norm


def _plain_copy(network: EnergyModel) -> EnergyModel:
    """A copy whose weights are plain tensors with their present values.

    Not by ``remove_parametrizations``: a deep copy shares its class with the original, which would lose its weights.
    """
    copied = copy.deepcopy(network)
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            weights = {
                name: getattr(module, name).detach().clone() for name in module.parametrizations
            }  # type: ignore[union-attr]
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                setattr(module, name, nn.Parameter(weight))
    return copied.requires_grad_(False)
