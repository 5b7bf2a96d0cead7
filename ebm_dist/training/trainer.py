"""The training loop.

The objective decides what a step computes, and :mod:`ebm_dist.training.reduce` how ranks
communicate.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import record_function

from ebm_dist import faults
from ebm_dist.chains.build import check_ladder
from ebm_dist.chains.eager import Precision
from ebm_dist.chains.replay import JoinedShards, ReplayShard, deal
from ebm_dist.config import (
    Mismatch,
    NonNegativeInt,
    Params,
    Positive,
    PositiveInt,
    Probability,
    module_of,
    section,
)
from ebm_dist.data import shards
from ebm_dist.data.loader import Cache, LogicalShard
from ebm_dist.energies import EnergyModel, is_conditional, iterate_power
from ebm_dist.errors import CheckpointError, ConfigError, DivergedError
from ebm_dist.generators import GeneratorModel
from ebm_dist.objectives import Batch, Objective, StepContext, Turn, build_players
from ebm_dist.rng import stream
from ebm_dist.training import checkpoint, optim, state
from ebm_dist.training.reduce import REDUCTIONS, Comm
from ebm_dist.training.reporter import Reporter, Request, Row
from ebm_dist.training.selection import Selection


@section
class Config:
    num_steps: PositiveInt = 2000
    """Training steps. The objective decides which players learn in each."""
    batch_size: PositiveInt = 128
    """Samples of each step, over all logical shards."""
    num_shards: PositiveInt = 4
    """Logical shards of batch, replay buffer and random streams: a power of 2. The maximum number
    of workers."""
    num_tasks: PositiveInt = 1
    """Number of groups of classes to learn in sequence: class-incremental learning (van de Ven &
    Tolias 2019). Each group gets an equal share of the steps. It does not use the data, chains or
    optimizer moments of earlier groups."""
    reduce: Literal["ordered", "ddp"] = "ordered"
    """``ordered``: bitwise the same result for any number of workers; ``ddp``:
    DistributedDataParallel, for GPUs. It processes the logical shards of a worker as one batch, so
    its random numbers depend on the number of workers."""
    log_every: PositiveInt = 20
    """Steps between two rows of metrics. No digest of a run has it."""
    select_every: NonNegativeInt = 0
    """Early stopping: steps between two measurements of the loss on the validation split. The
    averages of the weights with the lowest loss are exported. 0: those of the last step."""
    checkpoint_every: PositiveInt = 200
    """Steps between two checkpoints: the maximum that an interruption loses. No digest of a run has
    it."""
    validate_every: NonNegativeInt = 0
    """Steps between two validations, a multiple of ``checkpoint_every``: a task on a CPU beside
    those of the workers scores the checkpoint on the validation split, while training goes on. 0:
    never. No digest of a run has it."""
    num_threads: PositiveInt = 1
    """CPU threads of each worker. A different number changes the last bits of the result, so this
    is a training setting and not a cluster setting."""
    compile: bool = False
    """Compile the Langevin chains with torch.compile. Training is faster, but each start takes
    between a few seconds and a minute longer, and the last bits of the result differ."""
    precision: Precision = "float32"
    """Precision of the network while chains run. Positions, noise and steps are always float32.
    bfloat16 is for GPUs."""
    update_precision: Precision = "float32"
    """Precision of the energy's products and convolutions in the losses; weights, gradients and
    energies are always float32. bfloat16 is for GPUs."""
    max_energy: Positive = 1e4
    """Training diverges where the mean, the gap or the standard deviation of a shard's energies
    exceeds this in absolute value, or is NaN. No digest of a run has it."""
    max_rollbacks: NonNegativeInt = 0
    """Maximum number of rollbacks. After a divergence, training continues from the last checkpoint
    with different random streams and a smaller learning rate. No digest of a run has it, so that a
    run that has diverged may go on."""
    rollback_lr: Probability = 0.5
    """Factor of the learning rate for each rollback."""
    window: PositiveInt | None = None
    """Packs of samples within which an epoch is shuffled; packs themselves come in a random order.
    If absent, all packs of data that fit in memory, and 64 of larger data. Packs have 256 samples,
    fewer of large ones."""
    cache: Cache = "auto"
    """``memory``: each worker keeps its data in memory; ``stream``: it reads packs as they are
    needed, and ahead; ``auto``: streams data above 4 GiB. The bits are the same, and no digest of a
    run has it."""

    added_keys = ("window", "cache", "validate_every")

    def check(self, params: Params) -> None:
        if self.num_shards & (self.num_shards - 1):
            raise Mismatch(
                "train.num_shards",
                f"{self.num_shards} is no power of 2; choose 1, 2, 4, 8, 16 or more",
            )
        if self.batch_size % self.num_shards:
            raise Mismatch(
                "train.batch_size",
                f"{self.batch_size} is not divisible by train.num_shards = {self.num_shards};"
                " choose a multiple of it",
            )
        if self.num_steps % self.num_tasks:
            raise Mismatch(
                "train.num_tasks",
                f"train.num_steps = {self.num_steps} cannot be divided evenly among"
                f" {self.num_tasks} tasks; choose a num_steps that is a multiple of num_tasks",
            )
        objective, first = params.objective, params.objective.first_step("energy")
        if first >= self.num_steps:
            raise Mismatch(
                "train.num_steps",
                f"must be above the pretraining of {first} steps, found {self.num_steps}: the"
                " energy would not learn",
            )
        if self.num_tasks > 1 and (first or objective.follows_length):
            raise Mismatch(
                "train.num_tasks",
                "needs an objective without phases, and this one has a pretraining or a weight that"
                " follows the length of the training; use contrastive_divergence",
            )
        check_ladder(params)
        if self.select_every and not objective.compares_energies:
            raise Mismatch(
                "train.select_every",
                "losses of this objective at two steps cannot be compared; set it to 0",
            )
        if self.validate_every % self.checkpoint_every:
            raise Mismatch(
                "train.validate_every",
                f"must be a multiple of train.checkpoint_every = {self.checkpoint_every}, found"
                f" {self.validate_every}",
            )
        if self.select_every and self.num_tasks > 1:
            raise Mismatch("train.select_every", "is for one task; set it to 0")
        compiled_keys = [
            f"train.{key}"
            for key, is_set in (
                ("compile", self.compile),
                ("precision", self.precision != "float32"),
            )
            if is_set
        ]
        sampler = module_of(params.sampler)
        if compiled_keys and sampler.build(params.sampler, bounds=None).move is None:
            raise Mismatch(
                compiled_keys[0],
                f"{sampler.__name__.rpartition('.')[2]} cannot be compiled; choose another sampler",
            )


@dataclass
class Trainer:
    """The state and the steps of a training run. Build it with :func:`build`."""

    params: Params
    objective: Objective
    data: Mapping[int, LogicalShard]
    replay: Mapping[int, ReplayShard]
    comm: Comm
    device: torch.device
    num_classes: int
    labelled: Batch | None
    digest: str
    """Digest of settings, data and code: a checkpoint with a different digest is refused."""
    selection: Selection | None = None
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        self.config: Config = self.params.train
        self.step, self.seconds, self.history, self.rollbacks = 0, 0.0, list[Row](), 0
        players = self.objective.players
        self.averages = {name: optim.average_of(player) for name, player in players.items()}
        self.optimizers = self.new_optimizers()
        self.steps_per_task = self.config.num_steps // self.config.num_tasks
        self.task_data, self.task = self.data, -1
        # averages of the weights at the end of each earlier task
        self.previous_task_averages = list[dict[str, Tensor]]()
        self.reduction = REDUCTIONS[self.config.reduce](players, self.comm, self.config.num_shards)

    def fit(self, folder: Path, reporter: Reporter) -> int:
        """Train from the latest checkpoint in a folder to the last step, or to an agreed stop.

        Return the step reached.
        """
        self.resume_or_init(folder)
        reporter.started(
            self.step, self.history, self.rollbacks, "resumed" if self.step else "start"
        )
        start_time = self.clock() - self.seconds
        while (
            self.step < self.config.num_steps
            and (request := self.comm.agree(reporter.requested())) < Request.STOP
        ):
            try:
                row = self.advance()
            except DivergedError as diverged:
                self.roll_back(folder, reporter, diverged)
                continue
            self.step, self.seconds = self.step + 1, self.clock() - start_time
            if self.selection and self.is_due(self.config.select_every):
                self.selection.measure(self.step, self.averages, next(iter(self.replay.values())))
            if self.is_due(self.config.log_every):
                self.report(row, reporter)
            if self.is_due(self.config.checkpoint_every) or request == Request.SAVE:
                self.save(folder, reporter)
        if self.step < self.config.num_steps:
            self.save(folder, reporter)
        return self.step

    def advance(self) -> dict[str, Tensor]:
        """Run one training step: the turns of this rank's shards, in lock-step.

        Return metrics, each of shape ``(shards of this rank,)``.
        """
        if self.config.num_tasks > 1:
            self.start_task()
        shards = list(self.data)
        groups = [shards] if self.reduction.joins else [[shard] for shard in shards]
        turns_of = [
            self.objective.turns(self.batch(*group), self.context(*group)) for group in groups
        ]
        row: dict[str, Tensor] = {}
        for turns in zip(*turns_of, strict=True):
            player = turns[0].player
            gradient = self.reduction.gradient(player, [turn.loss for turn in turns])
            self.check_divergence(player, turns, gradient)
            faults.point("update.before")
            self.update(player, gradient, turns[0].rate)
            faults.point("update.after")
            row |= {f"loss_{player}": self.by_shard([turn.loss for turn in turns])}
            row |= {f"grad_norm_{player}": gradient.norm().expand(len(shards))}
            scalars = [{**turn.energies, **turn.metrics} for turn in turns]
            row |= {
                name: self.by_shard([values[name] for values in scalars]) for name in scalars[0]
            }
        if self.objective.observes:
            self.objective.observe(self.step, self.mean_over_shards(row))
        return row

    @record_function("update")
    def update(self, player: str, gradient: Tensor, factor: float = 1.0) -> None:
        """Hold and clip the gradient ``(num_parameters,)``, step, and update the average.

        ``factor`` multiplies the learning rate.
        """
        config, network, optimizer = (
            self.params.optimizer,
            self.objective.players[player],
            self.optimizers[player],
        )
        if config.anchor_weight and self.previous_task_averages:
            anchors = self.previous_task_averages[-1]
            moved = [
                (weight.detach() - anchors[f"{player}.{name}"]).flatten()
                for name, weight in network.named_parameters()
            ]
            gradient = gradient + config.anchor_weight * torch.cat(moved)
        if config.max_grad_norm is not None:
            gradient = gradient * (
                config.max_grad_norm / gradient.norm().clamp(min=config.max_grad_norm)
            )
        optim.assign_gradient(network, gradient)
        step = self.step % self.steps_per_task
        rate = optim.learning_rate(config, step, self.steps_per_task) * config.lr_factors.get(
            player, 1.0
        )
        optimizer.param_groups[0]["lr"] = rate * factor * self.config.rollback_lr**self.rollbacks
        optimizer.step()
        iterate_power(network)
        done = step - self.params.objective.first_step(player)
        optim.update_average(self.averages[player], network, config.ema_decay, done)

    def check_divergence(self, player: str, turns: tuple[Turn, ...], gradient: Tensor) -> None:
        """Stop all ranks before the update if one of them diverges.

        ``gradient`` has shape ``(num_parameters,)``. Raise :class:`DivergedError`.
        """
        losses = self.by_shard([turn.loss for turn in turns])
        energies = self.by_shard([_largest_energy(turn) for turn in turns])
        max_energy = self.config.max_energy
        are_finite = torch.isfinite(gradient).all() and torch.isfinite(losses).all()
        # a comparison with NaN is false
        is_sound = are_finite and (energies <= max_energy).all()
        if not self.comm.agree(not is_sound):
            return
        losses, energies = self.comm.gather(
            torch.stack([losses, energies], dim=1), self.config.num_shards
        ).T
        for message, is_bad in (
            ("loss of logical shard {} is not finite", ~torch.isfinite(losses)),
            (
                f"energies of logical shard {{}} exceed train.max_energy = {max_energy:g}",
                energies > max_energy,
            ),
        ):
            if is_bad.any():
                bad_shards = ", ".join(map(str, is_bad.nonzero().flatten().tolist()))
                cause = message.format(bad_shards)
                break
        else:
            cause = "gradient is not finite, with finite losses"
        raise DivergedError(
            f"step {self.step + 1}, player {player}: {cause}; no weight was changed. Try a smaller"
            " optimizer.lr or sampler.step_size, more sampler.num_steps, or a larger"
            " objective.energy_penalty; or allow train.max_rollbacks"
        )

    def roll_back(self, folder: Path, reporter: Reporter, diverged: DivergedError) -> None:
        """Restore the last checkpoint, with other random streams and a smaller learning rate.

        Raise the divergence after ``max_rollbacks``.
        """
        count = self.rollbacks + 1
        if count > self.config.max_rollbacks:
            raise diverged
        self.restore(folder)
        self.rollbacks = count
        reporter.started(self.step, self.history, self.rollbacks, f"rolled back: {diverged}")

    def is_due(self, every: int) -> bool:
        """Return whether an event that occurs every ``every`` steps is due now.

        Every event is due at the last step.
        """
        return self.step % every == 0 or self.step == self.config.num_steps

    def start_task(self) -> None:
        """Take the data and chains of the classes of this step's task.

        At its first step chains and moments are reset, and the weights are set to their averages.
        """
        task, done = divmod(self.step, self.steps_per_task)
        if task == self.task and done:
            return
        num_task_classes = self.num_classes // self.config.num_tasks
        classes = range(task * num_task_classes, (task + 1) * num_task_classes)
        self.task = task
        self.task_data = {shard: data.only(classes) for shard, data in self.data.items()}
        for shard, chains in self.replay.items():
            chains.classes = classes
            if not done:
                generator = stream(self.params.seed, "chains", shard, self.step, device=self.device)
                chains.restart(classes, generator)
        if task and not done:
            for name, network in self.objective.players.items():
                network.load_state_dict(self.averages[name].state_dict())
            self.previous_task_averages.append(
                {name: value.clone() for name, value in state.named(self.averages).items()}
            )
            self.optimizers = self.new_optimizers()

    def new_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return a new optimizer for each player that has parameters."""
        return {
            name: optim.optimizer(self.params.optimizer, player)
            for name, player in self.objective.players.items()
            if any(True for _ in player.parameters())
        }

    def by_shard(self, scalars: list[Tensor]) -> Tensor:
        """Return a scalar of each batch as ``(shards of this rank,)``."""
        return torch.stack(scalars).detach().repeat_interleave(len(self.data) // len(scalars))

    def energy(self, *inputs: Tensor | None) -> Tensor:
        """Return the energies ``(B,)`` that losses use, of samples and labels."""
        is_lower = self.config.update_precision != "float32"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_lower):
            energies: Tensor = self.reduction.players["energy"](*inputs)
        return energies.float()

    @record_function("data")
    def batch(self, *group: int) -> Batch:
        """Return the samples of some logical shards as one batch."""
        parts = [self.task_data[shard].batch(self.step) for shard in group]
        x, y = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return Batch(x.to(self.device), y.to(self.device))

    def context(self, *group: int) -> StepContext:
        """Return what the objective gets besides the batch of these logical shards."""
        suffix = f"/rollback-{self.rollbacks}" if self.rollbacks else ""

        def streams(purpose: str) -> torch.Generator:
            return stream(
                self.params.seed, purpose + suffix, group[0], self.step, device=self.device
            )

        chains = [self.replay[shard] for shard in group]
        return StepContext(
            self.step,
            chains[0] if len(chains) == 1 else JoinedShards(chains),
            {**self.reduction.players, "energy": self.energy},
            streams,
            self.labelled,
        )

    @record_function("report")
    def report(self, row: dict[str, Tensor], reporter: Reporter) -> None:
        """Record means over all shards of metrics, each of shape ``(shards of this rank,)``."""
        held_out = {} if self.selection is None else self.selection.row
        self.history.append({"step": self.step, **self.mean_over_shards(row), **held_out})
        reporter.metrics(self.history[-1], self.seconds)

    def mean_over_shards(self, row: dict[str, Tensor]) -> Row:
        """Return means over all shards of values ``(shards of this rank,)``; equal on all ranks."""
        rows = torch.stack([value.float() for value in row.values()], dim=1)
        means = self.comm.gather(rows, self.config.num_shards).double().mean(dim=0)
        return dict(zip(row, means.tolist(), strict=True))

    def resume_or_init(self, folder: Path) -> None:
        """Resume from the latest checkpoint, if there is one.

        Otherwise write one where rollbacks may need it.
        """
        if not self.restore(folder) and self.config.max_rollbacks:
            self.save(folder)

    @record_function("checkpoint")
    def save(self, folder: Path, reporter: Reporter | None = None) -> None:
        """Write a checkpoint: rank 0 the weights and state, every rank the chains of its shards."""
        files = state.encode_chains(self.replay)
        if self.comm.rank == 0:
            progress = state.Progress(self.step, self.seconds, self.rollbacks)
            players, averages, previous = (
                self.objective.players,
                self.averages,
                self.previous_task_averages,
            )
            files |= state.encode_networks(
                players, averages, self.optimizers, previous, self.history, progress
            )
            if self.selection:
                files |= state.encode_selection(self.selection.state_dict())
        keep = 2  # the newest, and one to fall back on if it is corrupted on disk
        checkpoint.save(folder, self.step, files, self.comm, digest=self.digest, keep=keep)
        if reporter:
            reporter.saved(self.history[-1] if self.history else {})

    def restore(self, root: Path) -> bool:
        """Load the latest complete checkpoint of this run. Return False if there is none.

        Raise :class:`CheckpointError` if it does not fit.
        """
        folder = checkpoint.latest(root, self.digest)
        if folder is None:
            return False
        try:
            state.load_networks(folder, self.objective.players, self.averages)
            state.load_moments(folder, self.optimizers)
            state.load_chains(folder, self.replay)
            if self.selection:
                self.selection.load_state_dict(state.read_selection(folder))
            self.previous_task_averages, self.task = state.read_previous_task_averages(folder), -1
            self.step, self.seconds, self.rollbacks = state.read_progress(folder)
            self.history = state.read_history(folder)
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as failed:
            raise CheckpointError(
                f"{folder}: does not fit this model ({failed}); remove {root} to start again"
            ) from None
        return True


def _largest_energy(turn: Turn) -> Tensor:
    """Return the largest absolute energy of a turn, or its absolute loss if it has no energies."""
    energies = [value.detach().abs() for value in turn.energies.values()]
    return torch.stack(energies).max() if energies else turn.loss.detach().abs()


def check_data(params: Params, index: shards.Index) -> None:
    """Check that the data have what the settings need.

    A model of binary variables needs values in [0, 1], a conditional one training samples of each
    class. Raise :class:`ConfigError` otherwise.
    """
    inner = params.objective
    while getattr(inner, "inner", None):
        inner = inner.inner
    network = getattr(params.energy, "network", params.energy)
    is_binary = getattr(network, "is_binary", False) or getattr(inner, "binarise", False)
    if is_binary and index.bounds != (0.0, 1.0):
        raise ConfigError(
            "energy: a model of binary variables needs data with the bounds 0 and 1, but"
            f" {index.dataset} has {index.bounds or 'none'}",
            "set dataset.bounds: [0, 1] if all values lie there, or another energy",
        )
    if is_conditional(params):
        counts = index.statistics["train"]["class_counts"] or []
        absent = [
            name for k, name in enumerate(index.class_names) if k >= len(counts) or not counts[k]
        ]
        if absent or not index.num_classes:
            raise ConfigError(
                "objective.conditional: needs training samples of each class, but"
                f" {index.dataset} has {'none of ' + ', '.join(absent) if absent else 'no labels'}",
                "set objective.conditional: false, or choose another data set",
            )


def build(
    params: Params, index: shards.Index, comm: Comm, device: torch.device, digest: str
) -> Trainer:
    """Build a trainer at step 0, with the logical shards of this rank.

    Raise :class:`ConfigError` where the classes cannot be divided evenly among the tasks.
    """
    check_data(params, index)
    config: Config = params.train
    rank_shards = deal(config.num_shards, comm.world_size, comm.rank)
    networks = {
        name: player.to(device)
        for name, player in build_players(params, index.shape, index.num_classes).items()
    }
    kernel = module_of(params.sampler).build(params.sampler, bounds=index.bounds)
    objective_of = partial(
        module_of(params.objective).build, params, kernel=kernel, bounds=index.bounds
    )
    capacity, batch_size = (
        params.replay.capacity // config.num_shards,
        config.batch_size // config.num_shards,
    )
    num_replicas = len(params.replay.temperatures)
    if index.num_classes % config.num_tasks:
        raise ConfigError(
            f"train.num_tasks: {index.num_classes} classes cannot be divided evenly among"
            f" {config.num_tasks} tasks"
        )
    new_chains = partial(
        ReplayShard,
        capacity,
        (num_replicas, *index.shape) if num_replicas else index.shape,
        index.bounds,
        range(index.num_classes),
        max_age=params.replay.max_age,
        policy=params.replay.policy,
        on_host=params.replay.on_host,
        class_counts=(
            index.statistics["train"]["class_counts"] if is_conditional(params) else None
        ),
    )
    data = {
        shard: LogicalShard(
            index,
            "train",
            shard,
            config.num_shards,
            batch_size,
            params.seed,
            window=config.window,
            cache=config.cache,
        )
        for shard in rank_shards
    }
    labelled = shards.read_labelled(index, params.seed)
    average = partial(_average, data, comm, config.num_shards)
    for network in networks.values():
        if isinstance(network, EnergyModel | GeneratorModel):
            network.initialise(average)
    selection = None
    if config.select_every:
        held_out = Batch(*(part.to(device) for part in shards.read_split(index, "val")))
        selection = Selection(lambda players: objective_of(networks=players), held_out, params.seed)
    return Trainer(
        params=params,
        objective=objective_of(networks=networks),
        data=data,
        replay={
            shard: new_chains(stream(params.seed, "chains", shard, device=device))
            for shard in rank_shards
        },
        comm=comm,
        device=device,
        num_classes=index.num_classes,
        labelled=labelled and Batch(*(part.to(device) for part in labelled)),
        digest=digest,
        selection=selection,
    )


def _average(
    data: Mapping[int, LogicalShard], comm: Comm, num_shards: int, of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the mean of a function over all training samples.

    It is bitwise the same for any number of workers.
    """
    sums = comm.gather(torch.stack([shard.sum(of) for shard in data.values()]), num_shards)
    counts = comm.gather(torch.tensor([len(shard) for shard in data.values()]), num_shards)
    return sums.sum(dim=0) / counts.sum()
