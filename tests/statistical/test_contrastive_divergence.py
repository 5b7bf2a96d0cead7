"""The learning rule against exact gradients and against a plain transcript of Algorithm 1."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from ebm_dist.chains.augmentation import AUGMENTATIONS, affine
from ebm_dist.data import shards
from ebm_dist.datasets import Arrays, Dataset
from ebm_dist.energies import is_conditional
from ebm_dist.errors import ConfigError
from ebm_dist.models.trained import load
from ebm_dist.rng import stream
from tests import helpers


def transcript(trainer, shard):
    """Algorithm 1 of Du & Mordatch 2019, line by line, on the same streams; returns gradient, negatives."""
    p, energy, step = trainer.params, trainer.objective.players["energy"], trainer.step
    draws = lambda purpose: stream(p.seed, purpose, shard, step)
    x_data = trainer.data[shard].batch(step)[0]
    n, chains = len(x_data), trainer.replay[shard]
    g = draws("replay")
    slots = torch.randperm(len(chains.age), generator=g)[:n]
    restart = torch.rand(n, generator=g) < p.replay.reinit_prob
    restart |= chains.age[slots] >= (p.replay.max_age or math.inf)
    counts = torch.where(restart, 0, chains.age[slots]) >= p.objective.burn_in
    torch.randint(len(chains.classes), (n,), generator=g)
    x = chains.position[slots].clone()
    x[restart] = torch.rand(int(restart.sum()), *x_data.shape[1:], generator=g)
    x = affine(x, p.objective.augment_prob, (0.0, 1.0), draws("augment"))
    g = draws("chain")
    for _ in range(p.sampler.num_steps):
        x = x.requires_grad_()
        (gradient,) = torch.autograd.grad(energy(x).sum(), x)
        x = (
            (
                x
                - p.sampler.step_size * gradient
                + p.sampler.noise_scale * torch.randn(x.shape, generator=g)
            )
            .detach()
            .clamp(0, 1)
        )
    g = draws("data_noise")
    x_plus = (x_data + p.objective.data_noise * torch.randn(x_data.shape, generator=g)).clamp(0, 1)
    alpha = p.objective.energy_penalty
    e_plus, e_minus = energy(x_plus), energy(x[counts])
    loss = alpha * (e_plus**2).mean()
    if counts.any():
        loss = loss + e_plus.mean() + (alpha * e_minus**2 - e_minus).mean()
    if p.objective.kl_weight:  # Du et al. 2021: the weights by which the chain moved, not those of the energy where it ends
        fixed, last = copy.deepcopy(energy).requires_grad_(False), x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(last).sum(), last, create_graph=True)
        end = (
            x
            - p.sampler.step_size * gradient
            + p.sampler.noise_scale * torch.randn(x.shape, generator=draws("kl"))
        )
        end = end.clamp(0, 1)
        nearest = [min((end[i] - x[j]).norm() for j in range(n) if j != i) for i in range(n)]
        loss = loss + p.objective.kl_weight * (
            fixed(end).mean() - p.objective.entropy_weight * torch.stack(nearest).log().mean()
        )
    return (
        torch.cat([v.flatten() for v in torch.autograd.grad(loss, list(energy.parameters()))]),
        x,
        slots,
    )


VARIANTS = {
    "plain": {},
    "ages": {"replay": {"max_age": 4}, "objective": {"burn_in": 2}},
    "augmented": {"objective": {"augment_prob": 0.5}},
    "gradient through the chain": {"objective": {"kl_weight": 2.0, "entropy_weight": 0.3}},
}


@pytest.mark.parametrize("limits", VARIANTS.values(), ids=VARIANTS)
def test_a_step_is_the_algorithm_s(digits_data, limits):
    trainer = helpers.build(helpers.params(**limits), digits_data)
    for _ in range(3):
        expected = [transcript(trainer, shard) for shard in trainer.data]
        mean = torch.stack([gradient for gradient, _, _ in expected]).mean(0)
        seen = {}
        update = trainer.update
        trainer.update = lambda player, gradient, factor, update=update, seen=seen: (
            seen.update({player: gradient.clone()}),
            update(player, gradient, factor),
        )
        trainer.advance()
        trainer.update = update
        torch.testing.assert_close(seen["energy"], mean, rtol=1e-4, atol=1e-6)
        for shard, (_, negatives, slots) in zip(trainer.data, expected, strict=True):
            torch.testing.assert_close(
                trainer.replay[shard].position[slots], negatives, rtol=1e-4, atol=1e-6
            )
        trainer.step += 1


def tempered_transcript(trainer, shard, temperatures):
    """Chains with two replicas, of which all persist; returns slots, replicas ``(n, 2, ...)``, mean energy."""
    p, energy, step = trainer.params, trainer.objective.players["energy"], trainer.step
    t, chains = p.sampler.temperature, trainer.replay[shard]
    n = p.train.batch_size // p.train.num_shards
    slots = torch.randperm(len(chains.age), generator=stream(p.seed, "replay", shard, step))[:n]
    cold, hot = chains.position[slots].unbind(1)
    g = stream(p.seed, "chain", shard, step)
    for i in range(p.sampler.num_steps):
        u, z = torch.rand(n, generator=g), torch.randn(2 * n, *cold.shape[1:], generator=g)
        moved = []
        for old, z_r, t_r in zip((cold, hot), z.split(n), temperatures, strict=True):
            x = old.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(energy(x).sum() / t_r, x)
            x_new = x - p.sampler.step_size * gradient + p.sampler.noise_scale * z_r
            moved.append(x_new.detach().clamp(0, 1))
        cold, hot = moved
        if (step * p.sampler.num_steps + i) % 2 == 0:
            with torch.no_grad():
                gap = (energy(cold) - energy(hot)) / t
            swaps = u.log() < gap / temperatures[0] - gap / temperatures[1]
            swaps = swaps.view(-1, 1, 1, 1)
            cold, hot = torch.where(swaps, hot, cold), torch.where(swaps, cold, hot)
    with torch.no_grad():
        return slots, torch.stack([cold, hot], dim=1), energy(cold).mean().item()


def test_tempered_chains_persist_and_the_coldest_are_the_negatives(digits_data, tmp_path):
    temperatures = [1.0, 4.0]
    chosen = helpers.params(
        sampler={"name": "langevin", "step_size": 0.02, "noise_scale": 0.01, "num_steps": 5},
        replay={"temperatures": temperatures, "reinit_prob": 0.0},
        train={"num_steps": 3},
    )
    trainer = helpers.build(chosen, digits_data)
    for _ in range(3):
        expected = {s: tempered_transcript(trainer, s, temperatures) for s in trainer.data}
        row = trainer.advance()
        for i, (shard, (slots, ends, energy)) in enumerate(expected.items()):
            torch.testing.assert_close(
                trainer.replay[shard].position[slots], ends, rtol=1e-4, atol=1e-5
            )
            assert row["energy_neg"][i].item() == pytest.approx(energy, rel=1e-4, abs=1e-5)
        assert 0 < row["chain_least_swap_rate"].mean() < 1
        trainer.step += 1
    trainer.save(tmp_path / "run")
    helpers.export(tmp_path / "run", tmp_path / "model", chosen, digits_data)
    chains = load(tmp_path / "model").chains
    kept = torch.cat([trainer.replay[shard].position for shard in trainer.replay])
    assert torch.equal(chains, kept[:, 0])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"objective": {"start": "noise"}}, "needs an objective with persistent chains"),
        ({"objective": {"augment_prob": 0.5}}, "tempered chains are not augmented"),
        ({"train": {"precision": "bfloat16"}}, "neither compiled nor in bfloat16"),
        ({"sampler": {"noise_scale": 0.0}}, "needs a sampler with noise"),
        ({"sampler": {"name": "gibbs"}, "energy": {"name": "rbm"}}, "cannot be tempered"),
        ({"replay": {"temperatures": [2.0, 3.0]}}, "start at 1 and grow"),
    ],
)
def test_what_tempered_chains_do_not_fit_is_refused(sections, message):
    sections = {"replay": {}} | sections
    sections["replay"] = {"temperatures": [1.0, 2.0]} | sections["replay"]
    with pytest.raises(ConfigError, match=message):
        helpers.params(**sections)


def composite(conditional, **changes):
    joint = {"name": "contrastive_divergence", "conditional": conditional} | (
        {"label_temperature": 0.5} if conditional else {}
    )
    own = {
        "name": "composite_likelihood",
        "joint": joint,
        "weight": 0.7,
        "num_completions": 3,
        "num_steps": 4,
        "energy_penalty": 0.2,
    }
    return helpers.params(objective=own | changes), helpers.params(objective=joint)


@pytest.mark.parametrize("conditional", [False, True])
def test_conditionals_are_learnt_beside_the_joint_density(digits_data, conditional):
    """The loss beyond that of p(x), with completions by a plain transcript on the same streams."""
    chosen, plain = composite(conditional)
    trainer, joint = helpers.build(chosen, digits_data), helpers.build(plain, digits_data)
    energy = copy.deepcopy(trainer.objective.players["energy"])
    (turn,), (turn_of_joint,) = (
        list(own.objective.turns(own.batch(1), own.context(1))) for own in (trainer, joint)
    )

    x, y = (part[:3] for part in trainer.data[1].batch(0)[:2])
    target = (lambda at: energy(at, y)) if conditional else energy
    g = stream(chosen.seed, "completion", 1, 0)
    which = torch.randint(4, (3, 1), generator=g).flatten().tolist()
    hidden = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    for i, half in enumerate(which):
        hidden[i, 0][
            [
                (slice(0, 4),),
                (slice(4, 8),),
                (slice(None), slice(0, 4)),
                (slice(None), slice(4, 8)),
            ][half]
        ] = True
    moving = torch.rand(x.shape, generator=g)
    for _ in range(4):
        moving = torch.where(hidden, moving, x).requires_grad_()
        (gradient,) = torch.autograd.grad(target(moving).sum(), moving)
        step = (
            chosen.sampler.noise_scale * torch.randn(x.shape, generator=g)
            - chosen.sampler.step_size * gradient
        )
        moving = (moving + step).detach().clamp(0, 1)
    completed = torch.where(hidden, moving, x)
    e_plus, e_minus = target(x), target(completed)
    expected = (e_plus + 0.2 * e_plus**2).mean() + (0.2 * e_minus**2 - e_minus).mean()
    assert (turn.loss - turn_of_joint.loss).item() == pytest.approx(
        0.7 * expected.item(), rel=1e-4, abs=1e-6
    )
    assert turn.metrics["completion_error"].item() == pytest.approx(
        ((completed - x) ** 2).mean().item(), rel=1e-4
    )
    assert turn.metrics["completion_gap"].item() == pytest.approx(
        (e_plus - e_minus).mean().item(), rel=1e-3, abs=1e-5
    )
    gradients = [
        torch.autograd.grad(own.loss, list(t.objective.players["energy"].parameters()))
        for own, t in ((turn, trainer), (turn_of_joint, joint))
    ]
    beyond = torch.autograd.grad(0.7 * expected, list(energy.parameters()))
    for both, alone, extra in zip(*gradients, beyond, strict=True):
        torch.testing.assert_close(both - alone, extra, rtol=1e-3, atol=1e-5)


def test_all_halves_are_hidden_and_no_more():
    from ebm_dist.objectives.composite_likelihood import halves

    hidden = halves(torch.zeros(64, 3, 5, 6), stream(0, "halves"))
    assert hidden.shape == (64, 1, 5, 6)
    kinds = {bytes(one.to(torch.uint8).numpy().tobytes()): one for one in hidden}
    assert sorted(one.float().mean().item() for one in kinds.values()) == pytest.approx(
        [0.4, 0.5, 0.5, 0.6]
    )
    assert torch.equal(sum(one.long() for one in kinds.values()), torch.full((1, 5, 6), 2))


def test_a_conditional_energy_stays_one_inside_composite_likelihood(digits_data):
    chosen, _ = composite(True)
    assert is_conditional(chosen) and chosen.objective.label_temperature == 0.5
    assert not is_conditional(composite(False)[0])
    with pytest.raises(
        ConfigError, match=r"label_temperature.* only a conditional energy has labels"
    ):
        composite(False, joint={"name": "contrastive_divergence", "label_temperature": 0.5})


def test_only_images_have_halves(tmp_path):
    toy = shards.write(
        tmp_path / "toy",
        "random",
        Dataset(
            {"train": Arrays(np.zeros((64, 2), np.float32), None)}, 1.0, None, 0, "zeros", False
        ),
    )
    trainer = helpers.build(composite(False)[0], toy.folder)
    with pytest.raises(ConfigError, match=r"hides halves of images, found samples of shape \(2,\)"):
        list(trainer.objective.turns(trainer.batch(0), trainer.context(0)))


def test_the_gradient_raises_likelihood():
    """On a space small enough to sum over: with exact negatives, the step ascends the exact log-likelihood; a wrong sign descends."""
    from ebm_dist.energies import mlp

    torch.manual_seed(0)
    points = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    energy = mlp.build(mlp.Config(hidden=(16,)), shape=(4,), num_classes=0)
    data = points[[0, 3, 3, 9]]

    def log_likelihood():
        return (-energy(data) - torch.logsumexp(-energy(points), 0)).mean()

    before = log_likelihood()
    exact = torch.autograd.grad(-before, list(energy.parameters()))
    weights = (-energy(points)).softmax(0).detach()
    loss = (
        energy(data).mean() - (weights * energy(points)).sum()
    )  # E+ - E-, with negatives from the model
    ours = torch.autograd.grad(loss, list(energy.parameters()))
    for a, b in zip(exact, ours, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        for parameter, gradient in zip(energy.parameters(), ours, strict=True):
            parameter.sub_(0.05 * gradient)
    assert log_likelihood() > before


def test_training_lowers_the_energy_of_data_against_noise(digits_data):
    chosen = helpers.params(
        train={"num_steps": 60, "batch_size": 64, "log_every": 60}, replay={"capacity": 256}
    )
    trainer = helpers.build(chosen, digits_data)
    for _ in range(60):
        trainer.advance()
        trainer.step += 1
    real = torch.cat([trainer.data[s].batch(0)[0] for s in trainer.data])
    with torch.no_grad():
        energy = trainer.objective.players["energy"]
        assert energy(real).mean() < energy(torch.rand_like(real)).mean() - 1


@pytest.mark.parametrize("start", ["data", "noise"])
def test_where_chains_start(digits_data, start):
    """With a vanishing step the negatives are where the chains start."""
    sampler = {"name": "langevin", "step_size": 1e-12, "noise_scale": 0.0, "num_steps": 1}
    objective = {"name": "contrastive_divergence", "start": start, "energy_penalty": 0.0}
    trainer = helpers.build(
        helpers.params(sampler=sampler, objective=objective, replay={"reinit_prob": 0.0}),
        digits_data,
    )
    row = trainer.mean_over_shards(trainer.advance())
    if start == "data":
        assert row["energy_gap"] == pytest.approx(0, abs=1e-6)
    else:
        assert abs(row["energy_gap"]) > 1e-3
    assert all(chains.age.sum() == 0 for chains in trainer.replay.values())


@pytest.mark.parametrize("start", ["replay", "data"])
def test_chains_may_take_the_labels_of_other_data(digits_data, start):
    """With a vanishing step: what is put back, and what the energies are of."""
    sampler = {"name": "langevin", "step_size": 1e-12, "noise_scale": 0.0, "num_steps": 1}
    objective = {
        "name": "contrastive_divergence",
        "conditional": True,
        "chain_labels": "data",
        "start": start,
    }
    trainer = helpers.build(
        helpers.params(sampler=sampler, objective=objective, replay={"reinit_prob": 0.0}),
        digits_data,
    )
    (x, y), chains = trainer.data[0].batch(0), trainer.replay[0]
    position = chains.position.clone()
    energy = copy.deepcopy(trainer.objective.players["energy"])
    (turn,) = trainer.objective.turns(trainer.batch(0), trainer.context(0))
    if start == "replay":
        moved = chains.age > 0
        assert sorted(chains.label[moved].tolist()) == sorted(y.tolist()) and torch.equal(
            chains.position, position
        )
    else:
        with torch.no_grad():
            assert turn.energies["energy_neg"] == pytest.approx(
                energy(x, y.roll(1)).mean().item(), rel=1e-4
            )


def test_chains_may_start_at_changed_data(digits_data):
    sampler = {"name": "langevin", "step_size": 1e-12, "noise_scale": 0.0, "num_steps": 1}
    for prob, augmentation in ((0.0, "affine"), (1.0, "affine"), (1.0, "crop")):
        objective = {
            "name": "contrastive_divergence",
            "start": "data",
            "augment_prob": prob,
            "augmentation": augmentation,
        }
        trainer = helpers.build(
            helpers.params(sampler=sampler, objective=objective, replay={"reinit_prob": 0.0}),
            digits_data,
        )
        (turn,) = trainer.objective.turns(trainer.batch(0), trainer.context(0))
        (x, _), energy = trainer.data[0].batch(0), trainer.objective.players["energy"]
        start = AUGMENTATIONS[augmentation](
            x, prob, (0.0, 1.0), trainer.context(0).stream("augment")
        )
        with torch.no_grad():
            assert turn.energies["energy_neg"] == pytest.approx(
                energy(start).mean().item(), abs=1e-6
            )
            assert (turn.energies["energy_gap"].abs() > 1e-5) == bool(prob)


def test_a_conditional_model_keeps_each_chain_s_label(digits_data):
    objective = {"name": "contrastive_divergence", "conditional": True}
    trainer = helpers.build(
        helpers.params(objective=objective, replay={"reinit_prob": 0.0}), digits_data
    )
    before = {s: chains.label.clone() for s, chains in trainer.replay.items()}
    trainer.advance()
    assert all(torch.equal(before[s], chains.label) for s, chains in trainer.replay.items())
    with torch.no_grad():
        x = torch.rand(2, 1, 8, 8)
        energy = trainer.objective.players["energy"]
        assert not torch.equal(energy(x, torch.tensor([0, 0])), energy(x, torch.tensor([1, 1])))


def test_the_label_term_is_the_cross_entropy_of_the_energies_over_the_labels(digits_data):
    """Against all ten energies of each image, computed one label at a time; the rest of the loss stays as it is."""
    temperature, losses = 0.7, []
    for chosen in ({}, {"label_temperature": temperature}):
        objective = {"name": "contrastive_divergence", "conditional": True, **chosen}
        trainer = helpers.build(helpers.params(objective=objective), digits_data)
        energy = copy.deepcopy(trainer.objective.players["energy"])
        batches = [trainer.data[s].batch(0) for s in trainer.data]
        losses.append(trainer.mean_over_shards(trainer.advance())["loss_energy"])
    expected = []
    for x, y in batches:
        with torch.no_grad():
            energies = torch.stack([energy(x, torch.full_like(y, k)) for k in range(10)], dim=1)
        log_p = (-energies / temperature).log_softmax(dim=1)
        expected.append(-temperature * log_p[torch.arange(len(y)), y].mean())
    assert losses[1] - losses[0] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_metrics_are_finite_with_one_sample_a_shard(digits_data):
    trainer = helpers.build(helpers.params(train={"batch_size": 2, "num_shards": 2}), digits_data)
    assert all(
        math.isfinite(value) for value in trainer.mean_over_shards(trainer.advance()).values()
    )
