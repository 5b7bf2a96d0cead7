"""The cost of a training before it starts: shards, sizes, memory, disk, and the time of a step."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ebm_dist import evaluation
from ebm_dist.chains.replay import deal
from ebm_dist.config import Params
from ebm_dist.data import shards
from ebm_dist.training import trainer
from ebm_dist.training.reduce import LocalComm

_WARM_UP, _TIMED = 1, 2  # steps


def lines(params: Params, data: Path) -> Iterator[str]:
    """Yield a line per fact.

    A few steps are timed in this process with all shards; nothing is written.
    """
    index, config = shards.read_index(data / "dataset"), params.train
    comparison_datasets = {
        name: shards.read_index(data / name) for name in params.comparison_datasets
    }
    evaluation.check(params, index, comparison_datasets)
    torch.set_num_threads(config.num_threads)
    probe = trainer.build(params, index, LocalComm(), torch.device("cpu"), "plan")
    _, workers = params.cluster.fewest_and_most
    num_train = index.num_samples("train")
    shape = f"shape {index.shape}, {index.num_classes or 'no'} classes"
    yield f"data      {index.dataset}: {num_train:,} training samples of {shape}"
    epochs = config.num_steps * config.batch_size / num_train
    yield f"steps     {config.num_steps:,} of {config.batch_size} samples: {epochs:.1f} epochs"
    dealt = ", ".join(str(len(deal(config.num_shards, workers, i))) for i in range(workers))
    yield f"shards    {config.num_shards} logical ones for {workers} workers: {dealt}"
    weights = {
        name: 4 * sum(p.numel() for p in player.parameters())
        for name, player in probe.objective.players.items()
    }
    yield "networks  " + ", ".join(
        f"{name} {size // 4:,} parameters" for name, size in weights.items()
    )
    chains = sum(
        value.numel() * value.element_size()
        for buffer in probe.replay.values()
        for value in buffer.state_dict().values()
    )
    held = max(
        sum(probe.data[shard].bytes_held for shard in deal(config.num_shards, workers, i))
        for i in range(workers)
    )
    how = "read as needed, at most" if shards.is_streamed(index, "train") else "in memory,"
    yield f"held      {how} {_mib(held)} of data in each worker"
    moments = 2 if params.optimizer.method == "adam" else 1
    size = sum(weights.values())
    checkpoint = size * (2 + moments) + chains
    yield (
        f"memory    {_mib(chains)} of replayed chains, over the workers"
        f"{' (host)' if params.replay.on_host else ''};"
        f" {_mib(size)} of weights in each"
    )
    count = config.num_steps // config.checkpoint_every + 1
    yield f"disk      {_mib(checkpoint)} a checkpoint, {count} of them, of which two are kept"
    shards_of_one = len(deal(config.num_shards, workers, 0))
    traffic = size * (shards_of_one + 1 if config.reduce == "ordered" else 2)
    yield f"network   {_mib(traffic)} of gradients to each worker in each step ({config.reduce})"
    # in the middle of training, when burn-in and pretraining are over
    probe.step, times = config.num_steps // 2, []
    for _ in range(_WARM_UP + _TIMED):
        began = time.perf_counter()
        probe.advance()
        probe.step += 1
        times.append(time.perf_counter() - began)
    step_s = sum(times[_WARM_UP:]) / _TIMED
    total_s = step_s * config.num_steps / min(workers, config.num_shards)
    minutes = f"about {total_s / 60:.1f} minutes of training on {workers} such workers"
    yield f"time      {step_s * 1000:.0f} ms a step in one process here: {minutes}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"
