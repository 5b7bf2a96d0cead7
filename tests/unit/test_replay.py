import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebm_dist.chains.replay import JoinedShards, ReplayShard, deal
from ebm_dist.rng import stream


@given(st.integers(1, 64), st.integers(1, 64))
def test_every_shard_is_dealt_to_exactly_one_rank_and_evenly(num_shards, world_size):
    hands = [deal(num_shards, world_size, rank) for rank in range(world_size)]
    assert [shard for hand in hands for shard in hand] == list(range(num_shards))
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


def shard(capacity: int = 40, num_classes: int = 3) -> ReplayShard:
    return ReplayShard(capacity, (2, 3), (0.0, 1.0), range(num_classes), stream(0, "chains"))


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_drawn_slots_differ_and_only_they_change(n, reinit_prob, step):
    chains = shard()
    before = chains.position.clone()
    draw = chains.draw(n, reinit_prob, stream(0, "replay", 0, step))
    assert len(draw.slots.unique()) == n
    assert torch.equal(chains.position, before)  # nothing changes before put
    chains.put(draw, torch.full((n, 2, 3), 9.0))
    assert torch.equal(chains.position[draw.slots], torch.full((n, 2, 3), 9.0))
    others = torch.ones(40, dtype=torch.bool)
    others[draw.slots] = False
    assert torch.equal(chains.position[others], before[others])
    assert chains.age.sum() == n


def test_chains_go_on_with_label_and_age_unless_restarted():
    chains = shard()
    for step in range(3):
        draw = chains.draw(40, 0.0, stream(0, "replay", 0, step))
        chains.put(draw, draw.position)
    assert chains.age.tolist() == [3] * 40
    old = chains.label.clone()
    draw = chains.draw(40, 0.0, stream(0, "replay", 0, 9))
    assert torch.equal(draw.label, old[draw.slots])
    draw = chains.draw(40, 1.0, stream(0, "replay", 0, 9))
    assert draw.age.tolist() == [0] * 40
    assert not torch.equal(draw.position, chains.position[draw.slots])


def test_no_chain_is_older_than_the_limit():
    chains = ReplayShard(400, (1,), (0.0, 1.0), range(2), stream(0, "chains"), max_age=3)
    assert chains.age.unique().tolist() == [0, 1, 2]  # spread from the start
    for step in range(6):
        before = chains.age.clone()
        draw = chains.draw(400, 0.0, stream(0, "replay", 0, step))
        ended = before[draw.slots] == 3
        assert torch.equal(draw.age, torch.where(ended, 0, before[draw.slots]))
        assert torch.equal(draw.position[~ended], chains.position[draw.slots][~ended])
        assert not (draw.position[ended] == chains.position[draw.slots][ended]).any()
        chains.put(draw, draw.position)
        assert chains.age.max() == 3


def test_restart_share_and_fresh_positions():
    chains = ReplayShard(20000, (1,), (-1.0, 3.0), range(2), stream(0, "chains"))
    chains.age += 5
    draw = chains.draw(20000, 0.1, stream(0, "replay"))
    share = (draw.age == 0).float().mean().item()
    assert abs(share - 0.1) < 4 * (0.09 / 20000) ** 0.5
    fresh = draw.position[draw.age == 0]
    assert -1 <= fresh.min() < -0.9 and 2.9 < fresh.max() <= 3
    assert (
        ReplayShard(9, (1,), None, range(2), stream(0, "chains")).position.min() < 0
    )  # unbounded data: normal


def test_a_ring_forgets_the_oldest():
    chains = ReplayShard(10, (1,), None, range(2), stream(0, "chains"), policy="fifo")
    for step in range(8):
        draw = chains.draw(4, 0.0, stream(0, "replay", 0, step))
        chains.put(draw, torch.full((4, 1), float(step)))
    assert sorted(chains.position.flatten().tolist()) == [5, 5, 6, 6, 6, 6, 7, 7, 7, 7]
    assert (
        chains.position[chains.age > 1] >= 1
    ).all() and chains.age.max() > 1  # chains go on from wherever they are


def test_a_reservoir_keeps_all_that_was_ever_put_with_the_same_probability():
    chains = ReplayShard(2000, (1,), None, range(2), stream(0, "chains"), policy="reservoir")
    chains.position[:] = -1.0
    for step in range(180):
        draw = chains.draw(100, 0.0, stream(0, "replay", 0, step))
        assert len(draw.slots.unique()) == len(draw.slots) == len(draw.kept)
        chains.put(draw, torch.full((100, 1), float(step)))
    shares = (
        torch.histc(chains.position, bins=10, min=-20, max=180) / 2000
    )  # the first is what was there at the start
    assert (shares - 0.1).abs().max() < 4 * (0.09 / 2000) ** 0.5


def test_state_goes_through_a_dict():
    one, other = shard(), ReplayShard(40, (2, 3), (0.0, 1.0), range(3), stream(1, "chains"))
    one.put(one.draw(10, 0.5, stream(0, "replay")), torch.zeros(10, 2, 3))
    other.load_state_dict(one.state_dict())
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("policy", ["persistent", "fifo", "reservoir"])
def test_joined_shards_end_as_each_alone(policy):
    def three() -> list[ReplayShard]:
        return [
            ReplayShard(20, (2,), None, range(4), stream(0, "chains", i), policy=policy)
            for i in range(3)
        ]

    alone, joined, positions = three(), three(), torch.arange(24.0).expand(2, 24).T
    for step in range(5):
        generator = stream(0, "replay", 0, step)
        draws = [shard.draw(8, 0.3, generator) for shard in alone]
        for shard, draw, position in zip(alone, draws, positions.split(8), strict=True):
            shard.put(draw, position + step)
        draw = JoinedShards(joined).draw(24, 0.3, stream(0, "replay", 0, step))
        assert torch.equal(draw.position, torch.cat([each.position for each in draws]))
        JoinedShards(joined).put(draw, positions + step)
        for ours, theirs in zip(joined, alone, strict=True):
            for name, tensor in theirs.state_dict().items():
                assert torch.equal(ours.state_dict()[name], tensor), name


def test_chains_on_the_host_end_as_those_on_the_device():
    def of(on_host: bool) -> ReplayShard:
        generator = stream(0, "chains")
        return ReplayShard(1024, (2,), (0.0, 1.0), range(4), generator, 3, on_host=on_host)

    here, there = of(False), of(True)
    for step in range(5):
        for shard in (here, there):
            draw = shard.draw(16, 0.3, stream(0, "replay", 0, step))
            shard.put(draw, draw.position + 1)
    for name, tensor in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], tensor), name


def test_more_chains_on_the_host_than_are_made_at_once_are_noise():
    position = ReplayShard(
        3000, (2,), (0.0, 1.0), range(1), stream(0, "chains"), on_host=True
    ).position
    assert position.unique(dim=0).shape == (3000, 2) and 0 <= position.min() < position.max() <= 1
