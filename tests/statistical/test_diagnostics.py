"""R-hat and effective sample sizes against arviz, and against chains of known worth."""

import arviz
import numpy as np
import pytest
import torch
from scipy import signal, stats

from ebm_dist.chains import diagnostics
from ebm_dist.rng import numpy_stream, stream
from ebm_dist.samplers import Info, hmc, langevin, mala, run_chain


def autoregressive(rho, num_chains, num_draws, seed=0):
    """Chains of unit variance with autocorrelation ``rho^t``, from their stationary distribution."""
    e = numpy_stream(seed, "chains").standard_normal((num_chains, num_draws))
    e[:, 1:] *= (1 - rho**2) ** 0.5
    return signal.lfilter([1.0], [1.0, -rho], e, axis=1)


PAIRS = {
    "rhat": (diagnostics.rhat, lambda x: arviz.rhat(x, method="rank")),
    "bulk": (diagnostics.ess_bulk, lambda x: arviz.ess(x, method="bulk")),
    "tail": (diagnostics.ess_tail, lambda x: arviz.ess(x, method="tail")),
    "mean": (diagnostics.ess_mean, lambda x: arviz.ess(x, method="mean")),
}


@pytest.mark.parametrize("name", PAIRS)
def test_as_arviz(name):
    """Many lengths, autocorrelations, ties and heavy tails; chains that differ in place and in spread. To 1e-10."""
    ours, theirs = PAIRS[name]
    for trial in range(60):
        rng = numpy_stream(trial, "shape")
        num_chains, num_draws = int(rng.integers(2, 6)), int(rng.integers(4, 300))
        if num_chains * num_draws % 20 == 1:
            num_draws += 1  # there a quantile is a draw, and arviz's may round to below it
        x = autoregressive(rng.uniform(-0.9, 0.98), num_chains, num_draws, trial)
        x = [
            x,
            x.round(),
            np.tan(x),
            x + np.arange(num_chains)[:, None],
            x * (1 + np.arange(num_chains)[:, None]),
        ][trial % 5]
        assert float(ours(x)) == pytest.approx(float(theirs(x)), rel=1e-10, nan_ok=True), (
            trial,
            x.shape,
        )


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.9])
def test_effective_sample_size_of_known_chains(rho):
    """n (1 - rho) / (1 + rho), within 5%."""
    x = autoregressive(rho, 40, 10000)
    exact = x.size * (1 - rho) / (1 + rho)
    assert diagnostics.ess_mean(x) == pytest.approx(exact, rel=0.05)
    assert diagnostics.ess_bulk(x) == pytest.approx(exact, rel=0.05)
    assert diagnostics.rhat(x) == pytest.approx(1, abs=0.005)


@pytest.mark.parametrize(
    "change", [lambda x, i: x + i, lambda x, i: x * (1 + i)], ids=["place", "spread"]
)
def test_r_hat_sees_chains_that_differ(change):
    """In place and, through the folds, in spread."""
    x = numpy_stream(0, "chains").standard_normal((4, 200))
    assert diagnostics.rhat(x) < 1.01 and diagnostics.rhat(change(x, np.arange(4)[:, None])) > 1.1


def test_dimensions_are_apart_and_the_library_does_not_matter():
    x = numpy_stream(0, "chains").standard_normal((3, 50, 2, 2))
    x[0, 7, 0, 1], x[1, 2, 1, 0], x[:, :, 1, 1] = np.nan, np.inf, 2.0
    for function, _ in PAIRS.values():
        value = function(torch.from_numpy(x))
        assert value.shape == (2, 2) and np.isnan(value[0, 1]) and np.isnan(value[1, 0])
        assert value[0, 0] == function(x[..., 0, 0])
        assert np.isnan(value[1, 1])
    with pytest.raises(ValueError, match="num_draws"):
        diagnostics.rhat(np.zeros((3, 3)))


def test_a_trace_of_a_chain():
    target = lambda x: (x**2).flatten(1).sum(1) / 2
    trace = diagnostics.Trace(every=2)
    kernel = hmc.build(hmc.Config(step_size=0.4, num_leapfrog=5), bounds=None)
    _, stats_ = run_chain(
        kernel, target, torch.zeros(8, 1, 3), 400, stream(0, "chain"), observe=trace
    )
    report = trace.report()
    assert trace.draws().shape == (8, 200, 1, 3) and report.energy.shape == (200,)
    assert report.rhat < 1.02 and 500 < report.ess_bulk < 8000 and report.ess_tail > 500
    assert (
        report.acceptance_rate == pytest.approx(stats_.acceptance_rate.item())
        and report.num_not_finite == 0 == report.at_bounds
    )
    assert report.energy[20:].mean() == pytest.approx(1.5, abs=0.1)
    x = trace.draws()
    assert report.moved == pytest.approx(
        (x[:, 1:] - x[:, :-1]).flatten(2).norm(dim=2).mean().item()
    )


def test_a_trace_tells_of_bounds_and_of_what_is_not_finite():
    trace = diagnostics.Trace()
    kernel = langevin.build(langevin.Config(step_size=1.0, noise_scale=3.0), bounds=(0.0, 1.0))
    run_chain(
        kernel,
        lambda x: x.sum(1) * 1.0 + (x**2).sum(1),
        torch.rand(50, 2),
        20,
        stream(0, "chain"),
        observe=trace,
    )
    report = trace.report(bounds=(0.0, 1.0))
    assert 0.5 < report.at_bounds < 1 and report.acceptance_rate == 1
    trace = diagnostics.Trace()
    kernel = mala.build(mala.Config(step_size=1.0), bounds=None)
    run_chain(
        kernel, lambda x: x.log().sum(1), torch.rand(50, 1), 4, stream(0, "chain"), observe=trace
    )
    assert 10 < trace.report().num_not_finite < 200


def test_independent_draws_have_their_number_as_size():
    x = np.asarray(stats.cauchy.rvs(size=(4, 2000), random_state=np.random.default_rng(0)))
    assert diagnostics.ess_bulk(x) == pytest.approx(8000, rel=0.1) and diagnostics.ess_tail(
        x
    ) == pytest.approx(8000, rel=0.1)


def test_a_trace_keeps_every_so_many_steps():
    trace = diagnostics.Trace(every=3)
    state = langevin.State(torch.zeros(2, 1))
    for step in range(7):
        trace(step, state, Info(torch.ones(2) * step, torch.zeros(2), torch.tensor([True, False])))
    assert torch.stack(trace.energies).tolist() == [[2, 2], [5, 5]] and trace.draws().shape == (
        2,
        2,
        1,
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_chains_that_never_move_have_no_sample_size(value):
    """A mean of equal numbers may round, which is no movement."""
    for function, _ in PAIRS.values():
        assert np.isnan(function(np.full((4, 100), value)))


def test_chains_stuck_at_different_places_have_an_infinite_r_hat_and_a_draw_each():
    for num_draws in (4, 8, 100):
        x = np.repeat(numpy_stream(0, "chains").standard_normal((4, 1)), num_draws, axis=1)
        assert diagnostics.rhat(x) == np.inf
        assert diagnostics.ess_bulk(x) == diagnostics.ess_tail(x) == 4
    two = np.repeat([[-0.1], [0.1]], 100, axis=1)  # the folds are all equal
    assert diagnostics.rhat(two) == np.inf


def test_draws_of_two_values():
    """The folds and one of the two quantiles are constant; the rest tells."""
    x = (numpy_stream(0, "chains").random((4, 500)) < 0.5).astype(float)
    assert diagnostics.rhat(x) == pytest.approx(1, abs=0.02)
    assert 1000 < diagnostics.ess_tail(x) < 4000 and 1000 < diagnostics.ess_bulk(x) < 4000


def trace_of(x):
    """A trace of the draws ``(num_chains, num_draws, *dims)``."""
    trace = diagnostics.Trace()
    for step, position in enumerate(torch.from_numpy(x).unbind(dim=1)):
        zero = torch.zeros(len(position))
        trace(step, langevin.State(position), Info(zero, zero, zero.bool()))
    return trace


def test_a_report_is_over_the_dimensions_that_vary_and_counts_the_others():
    x = numpy_stream(0, "chains").standard_normal((4, 100, 3))
    of_moving = trace_of(x).report()
    x = np.concatenate([x, np.full((4, 100, 2), 0.1)], axis=2)
    report = trace_of(x).report()
    assert report.num_constant == 2 and of_moving.num_constant == 0
    assert (report.rhat, report.ess_bulk, report.ess_tail) == of_moving[2:5]
    still = trace_of(np.zeros((4, 100, 2))).report()
    assert still.num_constant == 2 and np.isnan([still.rhat, still.ess_bulk]).all()
    x[0, 3, 0] = np.nan  # what is not finite is not left out
    assert np.isnan(trace_of(x).report().rhat)


@pytest.mark.parametrize(("rho", "least", "most"), [(0.8, 100, 600), (0.9, 300, 1500)])
def test_chains_from_afar_mix_after_some_thirty_correlation_times(rho, least, most):
    """They start 20 deviations apart and forget their starts by a factor of rho a step."""
    start = 20 * np.where(np.arange(10) % 2, 1, -1)[:, None]
    x = autoregressive(rho, 10, 8000)[..., None] + (start * rho ** np.arange(8000))[..., None]
    curve = diagnostics.rhat_by_length([x])
    lengths, values = zip(*curve, strict=True)
    assert lengths[0] == 8 and lengths[-1] == 8000 and list(lengths) == sorted(lengths)
    assert values[0] > 2 and values[-1] == pytest.approx(diagnostics.rhat(x[:, 4000::4])[0])
    assert least < diagnostics.mixed_from(curve) < most
    still = np.broadcast_to(start[..., None], x.shape)
    assert diagnostics.mixed_from(diagnostics.rhat_by_length([x, still])) is None


def test_chains_have_mixed_where_no_later_rhat_is_large():
    curve = [(8, 3.0), (16, 1.05), (32, 1.2), (64, 1.1), (128, 1.0)]
    assert diagnostics.mixed_from(curve) == 64
    assert diagnostics.mixed_from(curve[:3]) is diagnostics.mixed_from([(8, np.nan)]) is None
