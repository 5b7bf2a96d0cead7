"""The restricted Boltzmann machine against sums over all its states."""

import itertools

import pytest
import torch

from ebm_dist.energies import HasConditionals, averages_of, rbm
from ebm_dist.metrics import ais
from ebm_dist.rng import stream
from ebm_dist.samplers import gibbs, run_chain
from tests.statistical.targets import Z, assert_counts


def machine(num_visible=6, num_hidden=5, scale=0.8, seed=0, **config):
    """Weights and biases that are far from zero, with offsets."""
    model = rbm.build(
        rbm.Config(num_hidden=num_hidden, **config), shape=(num_visible,), num_classes=0
    )
    generator = stream(seed, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        if model.centred:
            model.visible_offset.copy_(torch.rand(num_visible, generator=generator))
    return model


def states(num):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num)))


def joint(weights):
    """``-E(v, h)`` of all pairs ``(2^D, 2^H)`` in float64, from the definition."""
    weight, b, c = (value.detach().double() for value in weights)
    v, h = states(len(b)).double(), states(len(c)).double()
    return v @ weight @ h.T + (v @ b)[:, None] + h @ c


def plain(weights):
    return rbm.Weights(*(value.detach() for value in weights))


@pytest.mark.parametrize("centred", [False, True])
def test_forward_is_the_free_energy(centred):
    model = machine(centred=centred)
    torch.testing.assert_close(
        model(states(6)).double(), -joint(model.weights()).logsumexp(1), rtol=1e-5, atol=1e-5
    )


def test_centred_units_are_another_way_to_write_the_same_machine():
    """``E = -(v - n).b' - (h - m).c' - (v - n)'W (h - m)`` up to a constant."""
    model = machine()
    n, m = model.visible_offset.double(), model.hidden_offset.double()
    weight, b, c = (
        value.detach().double() for value in (model.weight, model.visible_bias, model.hidden_bias)
    )
    v, h = states(6).double() - n, states(5).double() - m
    difference = v @ weight @ h.T + (v @ b)[:, None] + h @ c - joint(model.weights())
    assert difference.std() < 1e-6


def test_the_gradient_is_that_of_the_textbook_and_centred_that_of_the_centred():
    """-dF/dW is ``v p(h | v)``, in centred units ``(v - n) (p(h | v) - m)`` up to what does not depend on v."""
    v = states(6)[[3, 50]]
    for centred in (False, True):
        model = machine(centred=centred)
        p = model.weights().hidden_input(v).sigmoid()
        x, y = v - model.visible_offset, p - model.hidden_offset
        energy = model(v)
        (gradient,) = torch.autograd.grad(energy[1] - energy[0], model.weight)
        torch.testing.assert_close(gradient, torch.outer(x[0], y[0]) - torch.outer(x[1], y[1]))


@pytest.mark.parametrize("num_sweeps", [1, 2, 5])
def test_exact_draws_stay_exact_after_sweeps(num_sweeps):
    """The decisive one: a wrong kernel cannot hide behind slow mixing. And each start forgets itself, so it is no identity."""
    model = machine()
    p = (-model(states(6)).detach().double()).softmax(0)
    start = torch.multinomial(p, 20_000, replacement=True, generator=stream(1, "exact"))
    kernel = gibbs.build(gibbs.Config(num_sweeps=num_sweeps), bounds=(0.0, 1.0))
    x, chains = run_chain(kernel, model, states(6)[start], 1, stream(2, "chain"))
    index = (x @ 2.0 ** torch.arange(5, -1, -1)).long()
    assert_counts(index, p)
    assert (index == start).float().mean() < 0.5 and chains.acceptance_rate == 1


def test_one_sweep_is_drawn_from_the_exact_transition():
    """``sum_h p(v' | h) p(h | v)`` from the joint distribution."""
    model = machine()
    j = joint(model.weights())
    transition = j.softmax(1)[37] @ j.softmax(0).T
    x = model.resample(0, states(6)[37].expand(20_000, 6), stream(3, "chain"))
    assert_counts((x @ 2.0 ** torch.arange(5, -1, -1)).long(), transition)


def test_from_a_wrong_start_it_arrives():
    model = machine()
    p = (-model(states(6)).detach().double()).softmax(0)
    x, _ = run_chain(
        gibbs.build(gibbs.Config(), bounds=None),
        model,
        torch.zeros(4000, 6),
        100,
        stream(4, "chain"),
    )
    assert_counts((x @ 2.0 ** torch.arange(5, -1, -1)).long(), p)


def test_images_and_labels():
    model = rbm.build(rbm.Config(num_hidden=7), shape=(1, 3, 3), num_classes=4)
    assert isinstance(model, HasConditionals)
    x, y = torch.rand(5, 1, 3, 3, generator=stream(0, "x")), torch.arange(5) % 4
    drawn = model.resample(0, x, stream(0, "chain"), y)
    assert drawn.shape == x.shape and set(drawn.flatten().tolist()) <= {0.0, 1.0}
    alone = rbm.Weights(*model.weights(y[2:3]))
    torch.testing.assert_close(model(x, y)[2:3], alone.free_energy(x[2:3].flatten(1)))


@pytest.mark.parametrize("centred", [False, True])
def test_initialised_by_the_mean_of_the_data(centred):
    model = rbm.build(
        rbm.Config(num_hidden=4, centred=centred, weight_sd=1e-6), shape=(1, 2, 2), num_classes=0
    )
    data = torch.tensor([[[[0.0, 0.1], [0.6, 1.0]]], [[[0.0, 0.3], [0.8, 1.0]]]])
    model.initialise(averages_of(data))
    p = (-joint(model.weights()).logsumexp(1)).neg().softmax(0)
    torch.testing.assert_close(
        p @ states(4).double(), torch.tensor([0.01, 0.2, 0.7, 0.99]).double(), rtol=1e-4, atol=1e-4
    )


# likelihood


@pytest.mark.parametrize(("num_visible", "num_hidden"), [(6, 5), (4, 9), (9, 1)])
def test_exact_log_z_by_either_layer(num_visible, num_hidden):
    weights = machine(num_visible, num_hidden).weights()
    assert ais.exact_log_z(weights) == pytest.approx(
        joint(weights).flatten().logsumexp(0).item(), rel=1e-12
    )


def test_exact_log_z_in_chunks():
    weights = machine(16, 15, scale=0.3).weights()
    v = states(16).double()
    by_v = torch.logsumexp(
        -rbm.Weights(*(value.detach().double() for value in weights)).free_energy(v), 0
    )
    assert ais.exact_log_z(weights) == pytest.approx(by_v.item(), rel=1e-12)
    with pytest.raises(ValueError, match="too many"):
        ais.exact_log_z(machine(26, 26).weights())


def test_the_classic_schedule():
    betas = ais.schedule()
    assert (
        len(betas) == 14_501
        and betas[0] == 0
        and betas[500] == 0.5
        and betas[4500] == 0.9
        and betas[-1] == 1
    )
    assert all(a < b for a, b in itertools.pairwise(betas))


def exact_draws(weights, n, generator):
    """``h`` by enumeration, then ``v | h``."""
    h = states(len(weights.hidden_bias))
    p = (
        (h @ weights.hidden_bias + torch.nn.functional.softplus(weights.visible_input(h)).sum(1))
        .double()
        .softmax(0)
    )
    drawn = h[torch.multinomial(p, n, replacement=True, generator=generator)]
    return torch.bernoulli(weights.visible_input(drawn).sigmoid(), generator=generator)


@pytest.mark.parametrize("scale", [0.3, 0.6])
def test_ais_and_reverse_ais_hold_the_exact_value_in_their_intervals(scale):
    weights = plain(machine(20, 10, scale).weights())
    exact, betas = ais.exact_log_z(weights), ais.schedule(1000)
    base = torch.logit(exact_draws(weights, 1000, stream(0, "data")).mean(0).clamp(0.01, 0.99))
    forward = ais.ais(weights, base, betas, 100, stream(5, "ais"))
    back = ais.reverse_ais(
        weights, base, betas, exact_draws(weights, 100, stream(6, "exact")), stream(7, "ais")
    )
    for estimate in (forward, back):
        assert (
            estimate.low < exact < estimate.high and estimate.low < estimate.log_z < estimate.high
        )
        assert estimate.high - estimate.low < 0.5 and 50 < estimate.ess <= 100


@pytest.mark.parametrize("num_betas", [1, 4])
def test_the_mean_weight_is_right_for_any_temperatures(num_betas):
    """Unbiased for Z forwards, for 1/Z backwards: the log of 20,000 chains' mean is exact up to its error, with hardly any betas."""
    weights = plain(machine(6, 5, 0.5).weights())
    exact, base = ais.exact_log_z(weights), torch.linspace(-0.5, 0.5, 6)
    betas = [i / num_betas for i in range(num_betas + 1)]
    forward = ais.ais(weights, base, betas, 20_000, stream(8, "ais"))
    back = ais.reverse_ais(
        weights, base, betas, exact_draws(weights, 20_000, stream(9, "exact")), stream(10, "ais")
    )
    for estimate in (forward, back):
        error = (estimate.high - estimate.low) / 6  # one standard error
        assert abs(estimate.log_z - exact) < Z * error and error < 0.05


def test_pseudo_likelihood():
    """From the exact conditionals; the estimate from one unit a row has it as its mean."""
    model = machine()
    log_p = (-model(states(6)).detach().double()).log_softmax(0).view([2] * 6)
    rows = states(6)[[0, 21, 63]]
    exact = torch.stack(
        [
            torch.stack([log_p.log_softmax(i)[tuple(row.long())] for i in range(6)]).sum()
            for row in rows
        ]
    )
    torch.testing.assert_close(
        ais.pseudo_log_likelihood(model, rows).double(), exact, rtol=1e-4, atol=1e-4
    )
    many = ais.pseudo_log_likelihood(model, rows[1].expand(20_000, 6), stream(11, "units"))
    assert abs(many.mean() - exact[1]) < Z * many.std() / 20_000**0.5


def test_reconstruction():
    weights = rbm.Weights(100 * torch.eye(3), torch.full((3,), -50.0), torch.full((3,), -50.0))
    assert ais.reconstruction_error(weights, states(3)) < 1e-9
    assert ais.reconstruction_error(
        weights._replace(weight=torch.zeros(3, 3)), torch.ones(1, 3)
    ) == pytest.approx(1)


@pytest.mark.parametrize("num_betas", [1, 2, 3, 5, 10, 14, 15, 20, 29])
def test_a_short_schedule_also_starts_at_0_and_grows(num_betas):
    """So the mean weight is right, as for any temperatures."""
    betas = ais.schedule(num_betas)
    assert len(betas) == num_betas + 1 and (betas[0], betas[-1]) == (0, 1)
    assert all(a < b for a, b in itertools.pairwise(betas))
    weights = plain(machine(6, 5, 0.5).weights())
    estimate = ais.ais(weights, torch.zeros(6), betas, 20_000, stream(8, "ais"))
    error = (estimate.high - estimate.low) / 6  # one standard error
    assert abs(estimate.log_z - ais.exact_log_z(weights)) < Z * error and error < 0.1


def test_ais_refuses_what_gives_no_estimate_or_no_interval():
    weights, base = plain(machine(6, 5).weights()), torch.zeros(6)
    for betas in ([0.5, 1.0], [0.0, 0.5], [0.0, 0.7, 0.3, 1.0], [1.0]):
        with pytest.raises(ValueError, match="must grow from 0 to 1"):
            ais.ais(weights, base, betas, 10, stream(0, "ais"))
        with pytest.raises(ValueError, match="must grow from 0 to 1"):
            ais.reverse_ais(weights, base, betas, torch.zeros(10, 6), stream(0, "ais"))
    with pytest.raises(ValueError, match="at least two chains"):
        ais.ais(weights, base, [0.0, 1.0], 1, stream(0, "ais"))
    with pytest.raises(ValueError, match="at least two chains"):
        ais.reverse_ais(weights, base, [0.0, 1.0], torch.zeros(1, 6), stream(0, "ais"))
    with pytest.raises(ValueError, match="at least one step"):
        ais.schedule(0)
