"""The fault points, and what survives them."""

import re

import pytest

from ebm_dist import faults
from ebm_dist.errors import DataError
from ebm_dist.training import checkpoint
from tests import helpers
from tests.faults import storm
from tests.helpers import PROCESSES, ROOT, Silent, state_of


@pytest.fixture(autouse=True)
def disarmed():
    yield
    faults.arm(None)


@pytest.fixture(scope="module")
def golden(digits_data, tmp_path_factory):
    """The undisturbed run."""
    run = tmp_path_factory.mktemp("golden")
    helpers.build(helpers.params(), digits_data).fit(run, Silent())
    return state_of(run)


def test_the_list_is_of_the_points_in_the_source_and_the_storm_passes_each():
    named = [
        name
        for path in (ROOT / "ebm_dist").rglob("*.py")
        for name in re.findall(r'faults\.point\("(.+?)"\)', path.read_text())
    ]
    assert set(named) == set(faults.POINTS)
    assert set(storm.PASSES) == set(faults.POINTS)


@pytest.mark.parametrize("text", ["no.such:1:kill", "write.open:0:kill", "write.open:1:explode"])
def test_a_wrong_plan_is_refused(text):
    with pytest.raises(ValueError, match="EBM_FAULT"):
        faults.arm(text)


def test_a_plan_from_the_environment_is_for_its_rank_only(monkeypatch, caplog):
    monkeypatch.setenv("EBM_FAULT", "chain.step:2:broken")
    monkeypatch.setenv("EBM_FAULT_RANK", "1")
    faults.arm_from_environment(0)
    faults.point("chain.step")
    assert not caplog.text
    faults.arm_from_environment(1)
    assert "a fault is armed" in caplog.text
    faults.point("chain.step")
    faults.point("reduce.before")
    with pytest.raises(OSError, match="Input/output error"):
        faults.point("chain.step")


@pytest.mark.parametrize("action", ["full", "broken"])
@pytest.mark.parametrize("name", [name for name in faults.POINTS if name.startswith("write.")])
@pytest.mark.parametrize("count", [1, 5, 10])
def test_a_disk_that_fails_leaves_the_older_checkpoint_whole(
    digits_data, tmp_path, golden, name, action, count
):
    """At each system call of the second checkpoint's files, the manifest among them; then the disk works again."""
    trainer = helpers.build(helpers.params(), digits_data)
    assert trainer.fit(tmp_path, Silent(4)) == 4
    before = state_of(tmp_path)
    faults.arm(f"{name}:{count}:{action}")
    with pytest.raises(DataError, match=r"No space left|Input/output error"):
        trainer.fit(tmp_path, Silent())
    faults.arm(None)
    assert checkpoint.latest(tmp_path).name == "step-00000004"
    assert state_of(tmp_path) == before
    again = helpers.build(helpers.params(), digits_data)
    assert again.fit(tmp_path, Silent()) == 12
    assert state_of(tmp_path) == golden


def storm_of(kills: int, seed: int, with_store: bool = False) -> None:
    """``python -m tests.faults.storm``, forked from a process that has imported it and not used autograd."""
    process = PROCESSES.Process(target=storm.storm, args=(kills, seed, with_store), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_kills_at_random_points_change_nothing():
    storm_of(8, 11)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_storm_of_kills_changes_nothing():
    storm_of(200, 7)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(50, marks=pytest.mark.drill)]
)
def test_a_storm_with_a_store_that_answers_503_changes_nothing(kills):
    storm_of(kills, 7, with_store=True)
