"""What happens at the edges of a training: rare classes, few samples a shard, late players."""

import math
from types import SimpleNamespace

import pytest
import torch

from ebm_dist.chains import adaptation, exchange, tempering
from ebm_dist.chains.eager import TemperedChains
from ebm_dist.chains.replay import JoinedShards, ReplayShard
from ebm_dist.errors import ConfigError, DivergedError
from ebm_dist.objectives import Batch, StepContext, contrastive_divergence, score_matching
from ebm_dist.objectives import recovery_likelihood as recovery
from ebm_dist.rng import stream
from ebm_dist.samplers import dmala, mala, metropolis, run_chain
from ebm_dist.training import optim
from tests import helpers


def test_chains_have_the_labels_of_the_data_in_their_shares():
    chains = ReplayShard(
        20000, (1,), None, range(4), stream(0, "chains"), class_counts=[500, 0, 900, 100]
    )

    def shares(labels):
        return [(labels == k).float().mean().item() for k in range(4)]

    wanted = pytest.approx([1 / 3, 0, 0.6, 1 / 15], abs=0.015)
    assert shares(chains.label) == wanted
    assert shares(chains.draw(20000, 1.0, stream(0, "replay")).label) == wanted
    chains.restart(range(2, 4), stream(0, "task"))
    assert shares(chains.label) == pytest.approx([0, 0, 0.9, 0.1], abs=0.01)


def test_a_training_counts_the_classes_of_a_conditional_energy_alone(digits_data):
    for is_conditional in (True, False):
        chosen = helpers.params(objective={"conditional": is_conditional})
        chains = helpers.build(chosen, digits_data).replay[0]
        assert (chains.class_counts is not None) == is_conditional
    assert JoinedShards([chains]).classes == chains.classes


def levels_of(objective, energy, num_levels, shard_size, steps=40):
    """Return the levels that steps of a shard of few samples visit."""
    seen = set()

    class Asked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, y=None):
            seen.update(y.tolist())
            return self.weight * (x**2).flatten(1).sum(1) / 2

    network = Asked()
    objective = objective(network)
    replay = ReplayShard(4, (2,), None, range(1), stream(0, "chains"))
    batch = Batch(torch.zeros(shard_size, 2), torch.zeros(shard_size, dtype=torch.long))
    for step in range(steps):
        context = StepContext(
            step,
            replay,
            {"energy": network},
            lambda purpose, step=step: stream(0, purpose, 0, step),
        )
        list(objective.turns(batch, context))
    return seen


@pytest.mark.parametrize("name", ["score_matching", "recovery_likelihood"])
def test_a_shard_with_fewer_samples_than_levels_visits_all(name):
    sigmas = tuple(0.1 * 2.0**k for k in range(8))
    if name == "score_matching":
        chosen = score_matching.Config(sigmas=sigmas, noise_levels=True)
        make, num_levels = lambda e: score_matching.ScoreMatching(chosen, e), len(sigmas)
    else:
        kernel = mala.build(mala.Config(step_size=0.1), bounds=None)
        chosen = recovery.Config(sigmas=sigmas)
        make, num_levels = lambda e: recovery.RecoveryLikelihood(chosen, e, kernel, 1), 7
    assert levels_of(make, None, num_levels, 3) == set(range(num_levels))


def test_tempered_discrete_chains_keep_to_the_states():
    kernel = dmala.build(dmala.Config(step_size=0.5), bounds=None)
    hot = tempering.tempered(kernel, [1.0, 2.0, 5.0], bounds=None)
    x = (torch.rand(400, 6, generator=stream(0, "start")) < 0.5).float()
    target = lambda x: -(x * torch.linspace(-1, 1, 6)).sum(1)
    end, _ = run_chain(hot, target, x, 60, stream(0, "chain"))
    assert set(end.unique().tolist()) == {0.0, 1.0}
    mean = torch.sigmoid(torch.linspace(-1, 1, 6))
    assert (end.mean(0) - mean).abs().max() < 4 * 0.5 / 400**0.5


def test_pairs_alternate_over_training_steps_of_one_chain_step():
    """From one of two wells the other is reached by the hottest of three replicas alone."""
    energy = torch.nn.Module()
    energy.forward = lambda x, y=None: 60 * ((x**2 - 1) ** 2).sum(1)
    kernel = metropolis.build(metropolis.Config(step_size=0.3), bounds=None)
    chains = TemperedChains(energy, kernel, 1, [1.0, 5.0, 40.0], 1.0, None)
    x, right = torch.full((300, 3, 1), -1.0), []
    for step in range(600):
        x, _ = chains(x, None, stream(0, "chain", 0, step), step)
        right.append((x[:, 0] > 0).float().mean())
    assert torch.stack(right[300:]).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("sampler", "largest"), [(mala, None), (dmala, 100.0)])
def test_adapted_steps_within_bounds_reach_their_acceptance_or_stop_growing(sampler, largest):
    if sampler is mala:
        config = mala.Config(step_size=0.1, temperature=1e-3)
        target, start = lambda x: 1e-3 * ((x - 0.5) ** 2).sum(1) / 0.02, torch.full((300, 2), 0.5)
    else:
        config, target = dmala.Config(step_size=0.1), lambda x: 0 * x.sum(1)
        start = torch.zeros(300, 4)
    adapted, x = adaptation.adapt(config, target, start, 300, stream(0, "warm"), bounds=(0.0, 1.0))
    if largest:
        assert adapted.step_size <= 1.001 * largest
        return
    accepted = []
    run_chain(
        sampler.build(adapted, bounds=(0.0, 1.0)), target, x, 100, stream(0, "chain"),
        observe=lambda step, state, info: accepted.append(info.is_accepted.float().mean()),
    )  # fmt: skip
    assert torch.stack(accepted).mean() == pytest.approx(mala.ACCEPTANCE, abs=0.06)


def test_a_ladder_without_refusals_keeps_its_ends():
    assert exchange.equalised([1.0, 2.0, 4.0], [0.0, 0.0], 3) == pytest.approx([1.0, 2.0, 4.0])
    found = exchange.equalised([1.0, 0.9, 0.5, 0.0], [0.0, 0.3, 0.3], 4)
    assert found[0] == 1.0 and found[-1] == 0.0
    assert exchange.equalised([1.0, 2.0, 4.0], [math.nan, 0.5], 3)[0] == 1.0


NCE = {"name": "noise_contrastive", "generator": {"name": "gaussian"}}
LADDER = {"name": "recovery_likelihood", "sigmas": [0.0, 0.3, 1.0]}
MATCHED = {"name": "langevin", "step_size": 0.02, "noise_scale": 0.2, "num_steps": 3}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": NCE | {"pretraining": 12}}, "the energy would not learn"),
        ({"objective": NCE | {"pretraining": 2}, "train": {"num_tasks": 2}}, "without phases"),
        ({"objective": {"name": "energy_matching"}, "train": {"num_tasks": 2}}, "without phases"),
        ({"objective": LADDER}, "need the temperature 1, found"),
        ({"objective": LADDER, "sampler": {"name": "dmala"}}, "cannot sample conditionals"),
        (
            {"objective": {"entropy_weight": 1.0, "kl_weight": 1.0}, "train": {"batch_size": 4}},
            "needs two chains in a logical shard",
        ),
        (
            {
                "objective": {
                    "name": "composite_likelihood",
                    "joint": {"name": "contrastive_divergence", "binarise": True},
                },
                "energy": {"name": "rbm", "num_hidden": 4},
                "sampler": {"name": "gibbs"},
            },
            "cannot hold half of an image fixed",
        ),
        (
            {
                "sampler": {"name": "metropolis", "proposal": "noise"},
                "evaluation": {"chains": {"warm_up": 10}},
            },
            "how wide independent proposals",
        ),
    ],
)
def test_what_would_not_work_is_refused_before_it_starts(sections, message):
    with pytest.raises(ConfigError, match=message):
        helpers.params(**sections)


def test_settings_beside_those_are_taken():
    helpers.params(objective=LADDER, sampler=MATCHED)
    helpers.params(objective=NCE | {"pretraining": 11})


def test_the_average_of_an_energy_that_waits_forgets_its_first_weights(digits_data, monkeypatch):
    """Its decay starts low at its own first step, not at the first of the pretraining."""
    begun = {}
    monkeypatch.setattr(
        optim,
        "update_average",
        lambda average, player, decay, step: begun.setdefault(id(player), step),
    )
    trainer = helpers.build(helpers.params(objective=NCE | {"pretraining": 4}), digits_data)
    for trainer.step in range(6):
        trainer.advance()
    players = trainer.objective.players
    assert {name: begun[id(players[name])] for name in players} == dict.fromkeys(players, 0)


def test_a_composite_learns_the_data_of_its_inner_objective():
    cd = contrastive_divergence.Config(binarise=True)
    objective = contrastive_divergence.ContrastiveDivergence(cd, None, None, 0.0, (0.0, 1.0))
    batch = Batch(torch.full((50, 1, 4, 4), 0.3), torch.zeros(50, dtype=torch.long))
    context = SimpleNamespace(stream=lambda purpose: stream(0, purpose))
    once, twice = (objective.prepared(batch, context).x for _ in range(2))
    assert set(once.unique().tolist()) == {0.0, 1.0} and torch.equal(once, twice)


def test_data_are_not_pulled_down_before_there_are_negatives(digits_data):
    chosen = helpers.params(objective={"burn_in": 5, "energy_penalty": 0.0})
    trainer = helpers.build(chosen, digits_data)
    row = trainer.mean_over_shards(trainer.advance())
    assert row["grad_norm_energy"] == 0.0


def test_a_loss_that_is_not_finite_stops_with_a_finite_gradient(digits_data):
    trainer = helpers.build(helpers.params(), digits_data)
    (turn,) = trainer.objective.turns(trainer.batch(0), trainer.context(0))
    turns = tuple(turn._replace(loss=torch.tensor(-math.inf)) for _ in trainer.data)
    with pytest.raises(DivergedError, match="loss of logical shard 0, 1, 2, 3 is not finite"):
        trainer.check_divergence("energy", turns, torch.zeros(3))
