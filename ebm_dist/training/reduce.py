"""Collectives between the ranks of a training job, and gradients reduced over logical shards."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from ebm_dist import faults
from ebm_dist.chains.replay import deal


class Comm(Protocol):
    """Collectives of training. Every rank must call each of them equally often."""

    rank: int
    world_size: int

    def agree(self, value: int) -> int:
        """Return the largest value of all ranks."""

    def gather(self, rows: Tensor, num_shards: int) -> Tensor:
        """Gather rows ``(n, *)`` of this rank's shards to ``(num_shards, *)``, in shard order."""

    def sum(self, rows: Tensor, num_shards: int) -> Tensor:
        """Sum rows ``(n, k)`` of all shards to ``(k,)``, in shard order."""


class LocalComm:
    """A single process."""

    rank, world_size = 0, 1

    def agree(self, value: int) -> int:
        return value

    def gather(self, rows: Tensor, num_shards: int) -> Tensor:
        return rows

    def sum(self, rows: Tensor, num_shards: int) -> Tensor:
        return _summed(rows)


class TorchComm:
    """The default process group of ``torch.distributed``."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), device

    @record_function("reduce")
    def agree(self, value: int) -> int:
        vote = torch.tensor(value, device=self.device)
        dist.all_reduce(vote, dist.ReduceOp.MAX)
        return int(vote.item())

    @record_function("reduce")
    def gather(self, rows: Tensor, num_shards: int) -> Tensor:
        counts = self._counts(num_shards)
        padded = rows.new_zeros(max(counts), *rows.shape[1:], device=self.device)
        padded[: len(rows)] = rows
        gathered = padded.new_empty(self.world_size, *padded.shape)
        dist.all_gather_into_tensor(gathered.flatten(0, 1), padded)
        return torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)]).to(
            rows.device
        )

    @record_function("reduce")
    def sum(self, rows: Tensor, num_shards: int) -> Tensor:
        """Each rank sums a slice of the rows of all shards, and all ranks get all slices.

        A rank sends and receives as many rows as it has, and one more.
        """
        size, width = rows.shape[1], -(-rows.shape[1] // self.world_size)
        padded = rows.new_zeros(len(rows), self.world_size * width, device=self.device)
        padded[:, :size] = rows
        sent = padded.view(len(rows), self.world_size, width).transpose(0, 1).contiguous()
        received = sent.new_empty(num_shards, width)
        dist.all_to_all_single(
            received,
            sent.flatten(0, 1),
            output_split_sizes=self._counts(num_shards),
            input_split_sizes=[len(rows)] * self.world_size,
        )
        whole = sent.new_empty(self.world_size * width)
        dist.all_gather_into_tensor(whole, _summed(received))
        return whole[:size].to(rows.device)

    def _counts(self, num_shards: int) -> list[int]:
        """Return the number of shards of each rank."""
        return [len(deal(num_shards, self.world_size, rank)) for rank in range(self.world_size)]


def _summed(rows: Tensor) -> Tensor:
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total


class Reduction(Protocol):
    """Turns the losses of this rank's shards into the gradient of the mean loss of all shards."""

    joins: bool
    """Whether the shards of a rank are processed together, as one batch with one loss."""

    @property
    def players(self) -> Mapping[str, Callable[..., Any]]:
        """The callables that a loss must use instead of the networks."""

    def gradient(self, player: str, losses: list[Tensor]) -> Tensor:
        """Return the gradient ``(num_parameters,)`` of a player, equal on every rank."""


class Ordered:
    """Sums the shards' gradients in shard order.

    Floating-point sums depend on their order. With a fixed order the result is bitwise the same for
    any number of workers. A worker sends and receives the gradients of its own shards and one more:
    with one shard per worker this is the traffic of DDP.
    """

    joins = False

    def __init__(self, players: Mapping[str, nn.Module], comm: Comm, num_shards: int) -> None:
        self.players, self.comm, self.num_shards = players, comm, num_shards
        self.parameters = {name: list(player.parameters()) for name, player in players.items()}

    def gradient(self, player: str, losses: list[Tensor]) -> Tensor:
        parameters = self.parameters[player]
        rows = torch.stack([_flat(torch.autograd.grad(loss, parameters)) for loss in losses])
        faults.point("reduce.before")
        total = self.comm.sum(rows, self.num_shards)
        faults.point("reduce.after")
        return total.div_(self.num_shards)


class DDP:
    """``DistributedDataParallel``: overlaps the backward pass; the order of sums is not fixed.

    The shards of a rank are one batch: many small batches would leave a GPU waiting for launches.
    """

    joins = True

    def __init__(self, players: Mapping[str, nn.Module], comm: Comm, num_shards: int) -> None:
        self.networks = players
        # static_graph is silently wrong with double backward; buffers are equal on all ranks
        self.players = {
            name: DistributedDataParallel(p, broadcast_buffers=False)
            if any(True for _ in p.parameters())
            else p
            for name, p in players.items()
        }
        shards = deal(num_shards, comm.world_size, comm.rank)
        self.scale = len(shards) * comm.world_size / num_shards  # DDP takes the mean over ranks

    def gradient(self, player: str, losses: list[Tensor]) -> Tensor:
        self.networks[player].zero_grad()
        (loss,) = losses
        loss.mul(self.scale).backward()  # type: ignore[no-untyped-call]
        return _flat(
            [
                p.grad if p.grad is not None else torch.zeros_like(p)
                for p in self.networks[player].parameters()
            ]
        )


REDUCTIONS: Mapping[str, Callable[[Mapping[str, nn.Module], Comm, int], Reduction]] = {
    "ordered": Ordered,
    "ddp": DDP,
}


def _flat(tensors: Any) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
