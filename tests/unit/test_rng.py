import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ebm_dist.rng import numpy_stream, seeded, stream

addresses = st.tuples(
    st.integers(0, 2**63),
    st.sampled_from(["chain", "noise", "replay"]),
    st.integers(0, 99),
    st.integers(0, 10**9),
)


def draw(seed: int, purpose: str, shard: int, step: int) -> torch.Tensor:
    return torch.randn(4, generator=stream(seed, purpose, shard, step))


@given(addresses, addresses)
@settings(max_examples=50, deadline=None)
def test_a_stream_is_its_address(a, b):
    assert torch.equal(draw(*a), draw(*a))
    assert torch.equal(draw(*a), draw(*b)) == (a == b)


def test_each_part_of_the_address_matters():
    draws = [
        draw(s, p, h, t)
        for s, p, h, t in itertools.product((0, 1, 2**32), ("chain", "noise"), (0, 1), (0, 1))
    ]
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)


def test_parts_do_not_run_into_each_other():
    assert not torch.equal(draw(1, "chain", 1, 11), draw(1, "chain", 11, 1))


def test_draws_across_streams_are_standard_normal():
    """One number of each of many streams: what a bad way of seeding would spoil first."""
    x = torch.stack(
        [torch.randn(2, generator=stream(0, "chain", s, t)) for s in range(4) for t in range(1000)]
    ).numpy()
    assert stats.kstest(x[:, 0], "norm").pvalue > 1e-4
    assert abs(np.corrcoef(x[:-1, 0], x[1:, 0])[0, 1]) < 4 / np.sqrt(len(x))
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(len(x))


def test_seeded_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded(1, "energy"):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1, "energy"):
        assert torch.equal(torch.rand(3), inside)


def test_numpy_stream_is_its_address():
    assert (
        numpy_stream(1, "a").random()
        == numpy_stream(1, "a").random()
        != numpy_stream(1, "b").random()
    )
