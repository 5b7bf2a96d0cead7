"""The promises of the trainer: the same bits however many workers there are and however often it was cut off."""

import json
import random
import time

import pytest
import torch

from ebm_dist import files, models
from ebm_dist.energies import iterate_power
from ebm_dist.errors import CheckpointError, DivergedError
from ebm_dist.objectives import Turn
from ebm_dist.runs.record import EVENTS, METRICS, FileReporter, read_lines
from ebm_dist.training import checkpoint, state
from ebm_dist.training.reporter import Request
from tests import helpers
from tests.helpers import Silent, spawn, state_of


@pytest.fixture(scope="module")
def golden(digits_data, tmp_path_factory):
    """The undisturbed run of one process."""
    run = tmp_path_factory.mktemp("golden")
    helpers.build(helpers.params(), digits_data).fit(run, Silent())
    return state_of(run)


def test_stopped_anywhere_and_resumed_ends_with_the_same_bits(digits_data, tmp_path, golden):
    for stop_after in range(1, 12):
        run = tmp_path / str(stop_after)
        reached = helpers.build(helpers.params(), digits_data).fit(run, Silent(stop_after))
        assert reached == stop_after
        reporter = Silent()
        assert helpers.build(helpers.params(), digits_data).fit(run, reporter) == 12
        assert reporter.starts == [stop_after]
        assert state_of(run) == golden


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_any_number_of_workers_gives_the_same_bits(digits_data, tmp_path, golden, world_size):
    spawn(world_size, tmp_path / "run", digits_data, helpers.values())
    assert state_of(tmp_path / "run") == golden


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_64_shards_give_the_same_bits_on_1_2_and_4_workers(digits_data, tmp_path, cache):
    """Four shards share each tar; windows of two packs."""
    train = {"num_shards": 64, "batch_size": 64, "window": 2, "cache": cache, "num_steps": 6}
    settings = helpers.values(train=train, replay={"capacity": 128})
    states = []
    for world_size in (1, 2, 4):
        spawn(world_size, tmp_path / str(world_size), digits_data, settings)
        states.append(state_of(tmp_path / str(world_size)))
    assert states[0] == states[1] == states[2]
    assert sum("chains" in name for name in states[0]) == 64


@pytest.mark.slow
def test_streamed_data_train_to_the_bits_of_data_in_memory(digits_data, tmp_path):
    states = []
    for cache in ("memory", "stream"):
        run = tmp_path / cache
        chosen = helpers.params(train={"cache": cache, "window": 1})
        helpers.build(chosen, digits_data).fit(run, Silent())
        states.append(state_of(run))
    assert states[0] == states[1]


@pytest.mark.slow
def test_killed_and_resumed_with_other_numbers_of_workers(digits_data, tmp_path, golden):
    """SIGKILL to all at random moments, 4 -> 2 -> 1 -> 3 workers."""
    chance, run = random.Random(7), tmp_path / "run"
    settings = helpers.values(train={"checkpoint_every": 1})
    reference = helpers.build(helpers.params(train={"checkpoint_every": 1}), digits_data)
    reference.fit(tmp_path / "reference", Silent())
    for world_size in (4, 2, 1):
        group = spawn(world_size, run, digits_data, settings, wait=False)
        deadline = time.monotonic() + 60
        seen = len(list(run.glob("step-*")))
        while (
            len(list(run.glob("step-*"))) <= min(seen, 1)
            and time.monotonic() < deadline
            and group[0].exitcode is None
        ):
            time.sleep(0.01)
        time.sleep(chance.random() * 0.05)
        for process in group:
            process.kill()
        for process in group:
            process.join()
    spawn(3, run, digits_data, settings)
    assert state_of(run) == state_of(tmp_path / "reference")
    rows = [row["step"] for row in read_lines(run / METRICS)]
    assert rows == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("num_shards", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ddp_agrees_with_ordered(digits_data, tmp_path, num_shards):
    """20 steps of real DistributedDataParallel on two gloo ranks.

    With two shards a rank, which ddp processes as one batch, nothing is random: chains without noise
    from the data.
    """
    settings = helpers.values(
        train={"num_steps": 20, "checkpoint_every": 20, "num_shards": num_shards}
    )
    if num_shards == 4:
        settings["sampler"] |= {"noise_scale": 0.0}
        settings["objective"] |= {"start": "data", "data_noise": 0.0}
        settings["replay"] |= {"reinit_prob": 0.0}
    for name in ("ddp", "ordered"):
        changed = settings | {"train": settings["train"] | {"reduce": name}}
        spawn(2, tmp_path / name, digits_data, changed)
    folders = [checkpoint.latest(tmp_path / name) for name in ("ddp", "ordered")]
    ours, theirs = (
        files.read_tensors(folder / "weights.safetensors", "train") for folder in folders
    )
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5)
    for ours, theirs in zip(*map(state.read_history, folders), strict=True):
        for name in ("loss_energy", "grad_norm_energy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("network", ["mlp", "convnet", "resnet"])
def test_an_update_in_bfloat16_keeps_float32_weights_and_is_near(digits_data, network):
    gradients, small = {}, {} if network == "mlp" else {"channels": [8, 8]}
    for precision in ("float32", "bfloat16"):
        params = helpers.params(
            train={"update_precision": precision}, energy={"name": network, **small}
        )
        trainer = helpers.build(params, digits_data)
        trainer.update = lambda player, g, factor, of=precision: gradients.update({of: g})
        loss = trainer.advance()["loss_energy"]
        assert loss.dtype == gradients[precision].dtype == torch.float32
    near, exact = gradients["bfloat16"], gradients["float32"]
    assert 1e-5 < (near - exact).norm() / exact.norm() < 0.05


def test_a_non_finite_gradient_stops_before_the_update_and_names_step_player_and_shard(
    digits_data, tmp_path
):
    trainer = helpers.build(helpers.params(), digits_data)
    trainer.advance()
    trainer.step += 1
    trainer.data[2].scale = float("nan")
    before = [p.clone() for p in trainer.objective.players["energy"].parameters()]
    with pytest.raises(
        DivergedError,
        match="step 2, player energy: loss of logical shard 2 is not finite; no weight was changed",
    ):
        trainer.advance()
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, trainer.objective.players["energy"].parameters(), strict=True)
    )


def test_energies_that_run_away_stop_before_the_update(digits_data):
    trainer = helpers.build(helpers.params(train={"max_energy": 1e-6}), digits_data)
    with pytest.raises(
        DivergedError, match="step 1, player energy: energies of logical shard 0, 1, 2, 3 exceed"
    ):
        trainer.advance()


@pytest.mark.parametrize(
    ("loss", "energies", "metrics", "diverges"),
    [
        (1.0, {"energy_pos": 1.0, "energy_neg": -2e4}, {}, True),
        (1.0, {"energy_pos": 1.0, "energy_pos_sd": float("nan")}, {}, True),
        (2e4, {"energy_pos": 1.0}, {}, False),
        (-2e4, {}, {}, True),
        (1.0, {}, {"energy_reported_only": 2e4}, False),
    ],
)
def test_the_guard_takes_the_energies_of_a_turn_else_its_loss(
    digits_data, loss, energies, metrics, diverges
):
    trainer = helpers.build(helpers.params(), digits_data)

    def turn(loss, energies, metrics):
        scalars = (
            {name: torch.tensor(value) for name, value in values.items()}
            for values in (metrics, energies)
        )
        return Turn("energy", torch.tensor(loss), *scalars)

    turns = (*(turn(1.0, {}, {}) for _ in range(3)), turn(loss, energies, metrics))
    if diverges:
        with pytest.raises(DivergedError, match=r"logical shard 3|gradient is not finite"):
            trainer.check_divergence("energy", turns, torch.zeros(5))
    else:
        trainer.check_divergence("energy", turns, torch.zeros(5))


def diverge_at(trainer, step, times):
    """The data of one shard are not finite at this step, so many times."""
    batch, left = trainer.data[2].batch, iter(range(times))
    trainer.data[2].batch = lambda at: (
        (torch.full((4, 1, 8, 8), torch.nan), batch(at)[1])
        if at == step and next(left, None) is not None
        else batch(at)
    )
    return trainer


@pytest.mark.parametrize(("step", "back_to"), [(2, 0), (7, 4)])
def test_a_divergence_leads_back_to_the_last_checkpoint_with_other_streams_and_a_smaller_step(
    digits_data, tmp_path, golden, step, back_to
):
    chosen = helpers.params(train={"max_rollbacks": 2, "rollback_lr": 0.25})
    trainer = diverge_at(helpers.build(chosen, digits_data), step, 2)
    rates = []
    update = trainer.optimizers["energy"].step
    trainer.optimizers["energy"].step = lambda: (
        rates.append(trainer.optimizers["energy"].param_groups[0]["lr"]),
        update(),
    )
    reporter = Silent()
    assert trainer.fit(tmp_path, reporter) == 12
    assert reporter.starts == [0, back_to, back_to] and reporter.rollbacks == [0, 1, 2]
    assert rates[step] == pytest.approx(rates[back_to] / 4)  # the first step after going back
    assert [row["step"] for row in trainer.history] == [2, 4, 6, 8, 10, 12]
    assert state_of(tmp_path)["chains-00000.safetensors"] != golden["chains-00000.safetensors"]
    assert json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())["rollbacks"] == 2


def test_rollbacks_are_bounded_and_survive_a_restart(digits_data, tmp_path):
    chosen = helpers.params(train={"max_rollbacks": 2})
    trainer = diverge_at(helpers.build(chosen, digits_data), 5, 99)
    with pytest.raises(DivergedError, match="step 6"):
        trainer.fit(tmp_path, Silent())
    assert trainer.rollbacks == 2
    interrupted = tmp_path / "interrupted"
    assert (
        diverge_at(helpers.build(chosen, digits_data), 5, 1).fit(interrupted, Silent(8)) == 6
    )  # at step 5 it went back to 4
    reporter = Silent()
    helpers.build(chosen, digits_data).fit(interrupted, reporter)
    whole = tmp_path / "whole"
    diverge_at(helpers.build(chosen, digits_data), 5, 1).fit(whole, Silent())
    assert reporter.rollbacks == [1] and state_of(interrupted) == state_of(whole)


def test_a_checkpoint_is_written_when_asked_for_and_training_goes_on(digits_data, tmp_path, golden):
    reporter = Silent(5, asks=Request.SAVE)
    trainer = helpers.build(helpers.params(), digits_data)
    trainer.fit(tmp_path, reporter)
    assert reporter.saves == 8  # at step 4, and after every step from the sixth on
    assert state_of(tmp_path) == golden


def test_logical_shards_differ(digits_data):
    """The same seed on all shards would be duplicated chains: many workers for the diversity of one."""
    trainer = helpers.build(helpers.params(), digits_data)
    trainer.advance()
    positions = [chains.position for chains in trainer.replay.values()]
    assert all(not torch.equal(positions[0], other) for other in positions[1:])
    assert len(torch.cat(positions).flatten(1).unique(dim=0)) == 64


def test_a_checkpoint_of_another_model_is_refused(digits_data, tmp_path):
    helpers.build(helpers.params(), digits_data).fit(tmp_path, Silent())
    with pytest.raises(CheckpointError, match="does not fit this model"):
        helpers.build(helpers.params(energy={"name": "mlp", "hidden": [8]}), digits_data).restore(
            tmp_path
        )
    with pytest.raises(CheckpointError, match="settings, data or code differ"):
        helpers.build(helpers.params(), digits_data, digest="other").restore(tmp_path)


def test_spectral_norm_is_one_whatever_the_number_of_forward_passes(digits_data):
    chosen = helpers.params(energy={"name": "mlp", "hidden": [24, 16], "spectral_norm": True})
    trainer = helpers.build(chosen, digits_data)
    for _ in range(4):
        trainer.advance()
        trainer.step += 1
    energy = trainer.objective.players["energy"]
    before = {k: v.clone() for k, v in energy.state_dict().items()}
    energy(torch.rand(5, 1, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in energy.state_dict().items())
    iterate_power(energy, 30)
    for layer in energy.layers:
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-3)


def test_the_average_trails_the_weights_and_learning_rate_falls(digits_data):
    from ebm_dist.training import optim

    config = optim.Config(lr=1.0, warmup=0.1, decay=0.5)
    rates = [optim.learning_rate(config, step, 100) for step in range(100)]
    assert (
        rates[0] == pytest.approx(0.05) and max(rates) == 1.0 and rates[-1] == pytest.approx(0.01)
    )
    assert rates[10:50] == [1.0] * 40
    trainer = helpers.build(helpers.params(optimizer={"ema_decay": 0.5}), digits_data)
    weight = lambda net: net.last.weight.clone()
    average = weight(trainer.averages["energy"])
    for step in range(3):
        trainer.advance()
        d = min(0.5, (1 + step) / (10 + step))
        average = d * average + (1 - d) * weight(trainer.objective.players["energy"])
        trainer.step += 1
    torch.testing.assert_close(weight(trainer.averages["energy"]), average)


def test_gradients_are_clipped_to_their_norm(digits_data):
    trainer = helpers.build(helpers.params(optimizer={"max_grad_norm": 0.01}), digits_data)
    row = trainer.advance()
    norm = torch.cat(
        [p.grad.flatten() for p in trainer.objective.players["energy"].parameters()]
    ).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)
    assert row["grad_norm_energy"][0] > 0.01


def test_kernels_that_lie_channels_last_learn_as_adam_says_also_after_a_restart(
    digits_data, tmp_path
):
    """Fused Adam goes through memory: gradient and moments must lie there as the weights do (Kingma & Ba 2015, Algorithm 1)."""
    chosen = helpers.params(
        energy={"name": "convnet", "channels": [8, 8], "hidden": 16},
        optimizer={"betas": [0.5, 0.9], "decay": 0.0},
    )
    own = helpers.build(chosen, digits_data)
    assert any(
        not parameter.is_contiguous() for parameter in own.objective.players["energy"].parameters()
    )
    weights = torch.cat(
        [parameter.detach().flatten() for parameter in own.objective.players["energy"].parameters()]
    )
    first, second = torch.randn(2, len(weights), generator=torch.Generator().manual_seed(0))
    own.update("energy", first)
    own.step = 1
    own.save(tmp_path)
    own = helpers.build(chosen, digits_data)
    own.restore(tmp_path)
    own.update("energy", second)
    weights = weights - 1e-3 * first / (first.abs() + 1e-8)
    mean, square = (0.25 * first + 0.5 * second) / 0.75, (0.09 * first**2 + 0.1 * second**2) / 0.19
    weights = weights - 1e-3 * mean / (square.sqrt() + 1e-8)
    found = torch.cat(
        [parameter.detach().flatten() for parameter in own.objective.players["energy"].parameters()]
    )
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-6)


def test_a_model_of_one_logical_shard_is_exported_and_loaded(digits_data, tmp_path):
    chosen = helpers.params(train={"num_shards": 1}, cluster={"workers": 1})
    helpers.build(chosen, digits_data).fit(tmp_path / "run", Silent())
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    assert models.load(tmp_path / "model").params.train == chosen.train


def test_the_record_has_each_step_once_over_restarts(digits_data, tmp_path):
    for stop_after in (5, None):
        trainer = helpers.build(helpers.params(), digits_data)
        trainer.fit(
            tmp_path,
            FileReporter(tmp_path) if stop_after is None else Stopping(tmp_path, stop_after),
        )
    rows = list(read_lines(tmp_path / METRICS))
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert all(row["seconds"] > 0 and "energy_gap" in row for row in rows)
    assert [event["step"] for event in read_lines(tmp_path / EVENTS)] == [0, 5]
    (tmp_path / METRICS).write_text(
        ""
    )  # a disk that lost the record: the checkpoint brings the rows back
    helpers.build(helpers.params(), digits_data).fit(tmp_path, FileReporter(tmp_path))
    assert [row["step"] for row in read_lines(tmp_path / METRICS)] == [2, 4, 6, 8, 10, 12]


class Stopping(FileReporter):
    def __init__(self, run, after):
        super().__init__(run)
        self.after = after

    def requested(self):
        self.after -= 1
        return Request.STOP if self.after < 0 else Request.NOTHING


def test_a_stop_file_ends_the_run_at_the_next_step(digits_data, tmp_path):
    (tmp_path / "stop").touch()
    assert helpers.build(helpers.params(), digits_data).fit(tmp_path, FileReporter(tmp_path)) == 0
    state = json.loads((checkpoint.latest(tmp_path) / "state.json").read_text())
    assert state["step"] == 0
