"""What a training will take, before it is started: shards, sizes, bytes, and the time of a step that is really done."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ebm_dist.chains.replay import deal
from ebm_dist.config import Params
from ebm_dist.data import shards
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm

_WARM_UP, _TIMED = 1, 2  # steps


def lines(params: Params, data: Path) -> Iterator[str]:
    """One fact a line. Nothing is written; the steps are done with all shards in this process, and forgotten."""
    index, config = shards.read_index(data / "dataset"), params.train
    torch.set_num_threads(config.num_threads)
    own = trainer.build(params, index, LocalComm(), torch.device("cpu"), "plan")
    _, workers = params.cluster.fewest_and_most
    num_train = index.num_samples("train")
    yield f"data      {index.dataset}: {num_train:,} training samples of shape {index.shape}, {index.num_classes or 'no'} classes"
    epochs = config.num_steps * config.batch_size / num_train
    yield f"steps     {config.num_steps:,} of {config.batch_size} samples: {epochs:.1f} epochs"
    dealt = [len(deal(config.num_shards, workers, rank)) for rank in range(workers)]
    yield f"shards    {config.num_shards} logical ones for {workers} workers: {', '.join(map(str, dealt))}"
    weights = {
        name: 4 * sum(p.numel() for p in player.parameters())
        for name, player in own.objective.players.items()
    }
    yield "networks  " + ", ".join(
        f"{name} {size // 4:,} parameters" for name, size in weights.items()
    )
    chains = sum(
        value.numel() * value.element_size()
        for one in own.replay.values()
        for value in one.state_dict().values()
    )
    moments = 2 if params.optimizer.method == "adam" else 1
    checkpoint = sum(weights.values()) * (2 + moments) + chains
    yield f"memory    {_mib(chains)} of replayed chains, over the workers; {_mib(sum(weights.values()))} of weights in each"
    written = config.num_steps // config.checkpoint_every + 1
    yield f"disk      {_mib(checkpoint)} a checkpoint, {written} of them, of which two are kept"
    each = sum(weights.values())
    traffic = each * config.num_shards if config.reduce == "ordered" else 2 * each
    yield f"network   {_mib(traffic)} of gradients to each worker in each step ({config.reduce})"
    own.step, times = config.num_steps // 2, []  # whatever waits at the start has its turn by then
    for _ in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        own.advance()
        own.step += 1
        times.append(time.perf_counter() - began)
    step = sum(times[_WARM_UP:]) / _TIMED
    total = step * config.num_steps / min(workers, config.num_shards)
    minutes = f"about {total / 60:.1f} minutes of training on {workers} such workers"
    yield f"time      {step * 1000:.0f} ms a step in one process here: {minutes}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
