"""The space, the draws, the order of trials and the files that a search writes, without Ray."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from ebm_dist import config
from ebm_dist.data import shards
from ebm_dist.errors import CheckpointError, ClusterError, ConfigError
from ebm_dist.search import driver, optuna_search, report, scores, space, study, trial_job, trials
from ebm_dist.search.trials import WORST, SearchResult, Trial
from ebm_dist.training import checkpoint
from tests.helpers import ROOT, Silent, build, params, state_of, values

SPACE = {
    "sampler.step_size": {"log": [1e-4, 1.0]},
    "objective.energy_penalty": {"log": [1e-3, 1.0]},
}


def tuned_params(**tune):
    return config.from_values(
        values() | {"tune": {"num_steps": 90, "space": SPACE} | tune}, Path("test")
    )


def trial(index, *scores, state="finished", **more):
    rows = [
        {"step": 10 * (i + 1), "fid_clf": score, "order": 10 * index + i, "digest": "d"}
        for i, score in enumerate(scores)
    ]
    return Trial(
        index,
        more.pop(
            "values", {"sampler.step_size": 0.1 * (index + 1), "objective.energy_penalty": 0.01}
        ),
        0,
        90,
        state,
        rows=rows,
    )


def test_draws_are_log_uniform_reproducible_and_readable():
    chosen = tuned_params()
    drawn = [space.draw(chosen, i) for i in range(400)]
    assert drawn == [space.draw(chosen, i) for i in range(400)]
    logs = np.log10([d["sampler.step_size"] for d in drawn])
    assert -4 <= logs.min() < -3.9 and -0.1 < logs.max() <= 0
    assert np.histogram(logs, bins=4, range=(-4, 0))[0].min() > 70  # each decade its share
    assert all(float(f"{d['sampler.step_size']:.4g}") == d["sampler.step_size"] for d in drawn)
    assert space.draw(tuned_params(seed=1), 0) != drawn[0]


def test_whole_numbers_and_choices():
    ranges = {
        "sampler.num_steps": {"log": [2, 64]},
        "energy.hidden": {"choice": [[8, 8], [16]]},
        "optimizer.lr": {"linear": [1e-4, 1e-3]},
    }
    chosen = tuned_params(space=ranges)
    drawn = [space.draw(chosen, i) for i in range(50)]
    assert all(
        isinstance(d["sampler.num_steps"], int) and 2 <= d["sampler.num_steps"] <= 64 for d in drawn
    )
    assert {len(d["energy.hidden"]) for d in drawn} == {1, 2}
    own = space.trial_params(chosen, drawn[0], 5, 90, 10)
    assert (own.seed, own.train.num_steps, own.train.checkpoint_every, own.train.max_rollbacks) == (
        5,
        90,
        10,
        0,
    )
    assert own.sampler.num_steps == drawn[0]["sampler.num_steps"] and own.tune.space is None


def test_combinations_that_the_settings_refuse_are_drawn_again():
    chosen = tuned_params(
        space={"train.batch_size": {"linear": [16, 64]}}
    )  # must be divisible by four shards, at most the capacity
    assert all(space.draw(chosen, i)["train.batch_size"] % 4 == 0 for i in range(10))


@pytest.mark.parametrize(
    ("tune", "texts"),
    [
        (
            "{space: {sampler.step_sizes: {log: [1.0e-4, 1.0]}}}",
            ["tune.space.sampler.step_sizes", "did you mean 'sampler.step_size'?"],
        ),
        ("{space: {sampler.step_size: {log: [-1.0, 1.0]}}}", ["log: expected [low, high] above 0"]),
        (
            "{space: {sampler.step_size: {linear: [-1.0, 1.0]}}}",
            ["-1.0 is refused", "greater than 0"],
        ),
        ("{space: {sampler.step_size: {log: [1.0, 0.1]}}}", ["expected [low, high]"]),
        (
            "{space: {sampler.step_size: {log: [0.1, 1.0], linear: [0.1, 1.0]}}}",
            ["one of log, linear and choice"],
        ),
        (
            "{space: {sampler.step_size: {lug: [0.1, 1.0]}}}",
            ["tune.space.sampler.step_size.lug", "did you mean 'log'?"],
        ),
        (
            "{space: {sampler.step_size: {log: [0.1]}}}",
            ["tune.space.sampler.step_size.log.1", "missing"],
        ),
        (
            "{space: {sampler.step_size: {log: [a, b]}}}",
            ["tune.space.sampler.step_size.log.0", "valid number"],
        ),
        ("{space: {train.num_shards: {choice: [4, 3]}}}", ["3 is refused", "is no power of 2"]),
        ("{space: {energy.hidden: {log: [8, 16]}}}", ["is no number; use choice"]),
        (
            "{space: {train.num_steps: {log: [8, 16]}}}",
            ["no such value decides the result of training"],
        ),
        (
            "{space: {evaluation.samples.num_steps: {log: [8, 16]}}}",
            ["no such value decides the result of training"],
        ),
        ("{space: {energy.hidden: {choice: []}}}", ["expected at least one value"]),
        ("{space: {sampler.num_steps: {linear: [2.2, 2.8]}}}", ["no integer in the range"]),
        (
            "{space: {objective.data_noise: {linear: [-1.0e+308, 1.0e+308]}}}",
            ["too wide for floating point"],
        ),
        ("{num_steps: 100}", ["tune.num_steps", "not divisible"]),
        ("{scheduler: hyper}", ["tune.scheduler", "'asha', 'pbt' or 'none'"]),
        ("{scheduler: pbt, search: optuna}", ["tune.search"]),
        (
            "{scheduler: pbt, space: {energy.hidden: {choice: [[8], [16]]}}}",
            ["pbt copies weights and chains"],
        ),
        ("{metric: test_fid}", ["tune.metric"]),
        ("{num_trial: 3}", ["did you mean 'num_trials'?"]),
        ("{workers: 5}", ["5 workers cannot share train.num_shards = 4"]),
    ],
)
def test_a_bad_search_is_one_message_with_its_line(tmp_path, tune, texts):
    path = tmp_path / "params.yaml"
    path.write_text(
        "".join(f"{name}: {json.dumps(section)}\n" for name, section in values().items())
        + f"\ntune: {tune}\n"
    )
    with pytest.raises(ConfigError) as refused:
        config.load(path)
    line = len(path.read_text().splitlines())
    assert str(refused.value).startswith(f"{path}:{line}: "), refused.value
    assert all(text in str(refused.value) for text in texts), refused.value


def test_the_default_space_is_what_the_file_has():
    chosen = params()
    assert set(chosen.tune.ranges(chosen)) == set(space.DEFAULT_SPACE) and chosen.tune.space is None
    low, high = space.DEFAULT_SPACE["sampler.step_size"].log
    assert math.log10(high / low) == pytest.approx(4)


def test_the_order_of_trials_never_prefers_what_diverged_or_is_not_a_number():
    known = [
        trial(0, 50.0),
        trial(1, 1.0, WORST, state="diverged"),
        trial(2, math.nan),
        trial(3, 40.0, 30.0, state="stopped"),
        trial(4, state="failed"),
        trial(5, 5.0, state="failed"),
        trial(6, -math.inf),
        trial(7, 30.0),
    ]
    assert [t.index for t in trials.ranked(known, "fid_clf")][:3] == [
        3,
        7,
        0,
    ]  # equal scores: the farther first
    assert [t.score("fid_clf") for t in known] == [50.0, None, None, 30.0, None, None, None, 30.0]
    assert trials.ranked([], "fid_clf") == []
    assert trials.read_trials(trials.write_trials(known[:2])) == known[:2]


def test_proposals_are_reproducible_and_an_interrupted_search_gets_new_ones():
    pytest.importorskip("optuna")
    chosen = tuned_params(search="optuna")
    first = optuna_search.Proposals(chosen, [])
    drawn = [first.next(i) for i in range(4)]
    over = [trial(i, 30.0 + i, values=drawn[i]) for i in range(2)]
    again = optuna_search.Proposals(chosen, over)
    assert [optuna_search.Proposals(chosen, []).next(i) for i in range(2)] == drawn[:2]
    later = [again.next(i)["sampler.step_size"] for i in range(2, 6)]
    assert len({*later, *(values["sampler.step_size"] for values in drawn[:2])}) == 6


def test_progress_counts_each_step_once():
    first, second = trial(0, 50.0, 40.0), trial(1, 60.0, 10.0, WORST)
    found = trials.progress([first, second], "fid_clf")
    assert found.used_steps == [10, 20, 30, 40, 50] and found.best == [50.0, 40.0, 40.0, 10.0, 10.0]
    clone = trial(2, 3.0)
    clone.rows[0] |= {"step": 30, "inherited": 20}
    assert trials.progress([clone], "fid_clf").used_steps == [10]


def test_the_tuned_file_is_whole_and_reads_back(tmp_path):
    source = ROOT / "params.yaml"
    new = {"sampler.step_size": 0.0432, "objective.energy_penalty": 0.5, "sampler.score_clip": 0.1}
    path = tmp_path / "tuned.yaml"
    path.write_text(study.tuned(source, new, "from a search\n\nof 3 trials"))
    before, after = config.load(source), config.load(path)
    assert (after.sampler.step_size, after.objective.energy_penalty, after.sampler.score_clip) == (
        0.0432,
        0.5,
        0.1,
    )
    assert (
        after.train == before.train
        and after.register == before.register
        and after.tune == before.tune
    )
    text = path.read_text()
    assert (
        text.startswith("# from a search\n#\n# of 3 trials\n\n")
        and "recipe" not in text.partition("seed:")[0].partition("\n\n")[2]
    )
    assert "# real data of another kind" in text
    again = tmp_path / "again.yaml"
    again.write_text(study.tuned(path, {}, "head"))
    assert config.load(again) == after and "from a search" not in again.read_text()


def test_perturbed_values_stay_in_their_ranges():
    chosen = tuned_params(scheduler="pbt")
    generator = np.random.default_rng(0)
    moved = [
        space.perturbed(
            chosen, {"sampler.step_size": 0.9, "objective.energy_penalty": 0.0011}, generator
        )
        for _ in range(20)
    ]
    assert {m["sampler.step_size"] for m in moved} == {0.72, 1.0}
    assert {m["objective.energy_penalty"] for m in moved} == {0.001, 0.001375}


def ranges_of(kind):
    """Ranges with positive ends, among them ones narrower than four significant digits."""
    starts = st.floats(1e-6, 1e6)
    widths = st.sampled_from([1e-9, 1e-6, 1e-4, 0.03, 1.0, 1e3])
    return st.tuples(starts, widths).map(lambda pair: {kind: [pair[0], pair[0] * (1 + pair[1])]})


@given(kind=st.sampled_from(["log", "linear"]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_each_draw_lies_in_its_range_and_can_be_learnt_from(kind, data):
    pytest.importorskip("optuna")
    span = data.draw(ranges_of(kind))
    searched = tuned_params(space={"sampler.step_size": span}, search="optuna")
    low, high = span[kind]
    drawn = [space.draw(searched, i) for i in range(4)]
    drawn.append(space.perturbed(searched, drawn[0], np.random.default_rng(0)))
    assert all(low <= values["sampler.step_size"] <= high for values in drawn)
    proposals = optuna_search.Proposals(
        searched, [trial(i, 1.0, values=values) for i, values in enumerate(drawn)]
    )
    assert low <= proposals.next(9)["sampler.step_size"] <= high


def test_a_range_that_ends_near_1_yields_values_up_to_its_end_and_never_1():
    searched = tuned_params(space={"optimizer.ema_decay": {"linear": [0.99, 0.99999]}})
    drawn = [space.draw(searched, i)["optimizer.ema_decay"] for i in range(256)]
    assert 0.9999 < max(drawn) <= 0.99999 and len(set(drawn)) > 200
    assert all(len(repr(value)) <= 7 for value in drawn)  # 0.12345: readable


@pytest.mark.parametrize(
    ("span", "shares"),
    [
        ({"linear": [1, 3]}, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}),
        ({"linear": [0.6, 3.4]}, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3}),
        ({"log": [1, 4]}, {1: 0.48, 2: 0.24, 3: 0.16, 4: 0.12}),  # in proportion to 1 / k
    ],
)
def test_integers_at_the_ends_of_a_range_have_their_full_weight(span, shares):
    searched = tuned_params(space={"sampler.num_steps": span})
    drawn = [space.draw(searched, i)["sampler.num_steps"] for i in range(256)]
    counts = {k: drawn.count(k) / 256 for k in sorted(set(drawn))}
    assert counts == pytest.approx(shares, abs=0.03)


@pytest.mark.parametrize("start", [1, 2, 3, 40])
def test_pbt_moves_small_integers(start):
    searched = tuned_params(
        scheduler="pbt", space={"sampler.num_steps": {"linear": [1, 40]}, **SPACE}
    )
    values = {"sampler.num_steps": start, **dict.fromkeys(SPACE, 0.1)}
    generator = np.random.default_rng(0)
    moved = {space.perturbed(searched, values, generator)["sampler.num_steps"] for _ in range(40)}
    assert moved - {start} and all(1 <= value <= 40 for value in moved)
    if start < 40:
        assert max(moved) == start + 1


def test_zero_is_not_absorbing_in_pbt():
    searched = tuned_params(
        scheduler="pbt",
        space={
            "objective.data_noise": {"linear": [0.0, 0.3]},
            "sampler.num_steps": {"log": [1, 9]},
        },
    )
    values, generator = (
        {"objective.data_noise": 0.0, "sampler.num_steps": 1},
        np.random.default_rng(0),
    )
    reached = []
    for _ in range(200):
        values = space.perturbed(searched, values, generator)
        reached.append(values["objective.data_noise"])
    assert max(reached) > 0.02 and min(reached) >= 0 and len(set(reached)) > 10


@pytest.mark.parametrize(
    ("nodes", "need", "count"),
    [
        ([{"CPU": 2.02}], (1, 1.0, 0.0), 2),
        ([{"CPU": 2}], (1, 1.0, 0.0), 1),  # the drivers' share is missing
        ([{"CPU": 2.02}], (2, 1.0, 0.0), 1),
        ([{"CPU": 2.02}], (3, 1.0, 0.0), 0),
        (
            [{"CPU": 8}, {"CPU": 8}],
            (4, 2.0, 0.0),
            1,
        ),  # three workers fit on each machine beside a driver: six, not eight
        ([{"CPU": 3}, {"CPU": 3}], (1, 2.0, 0.0), 2),  # a worker is not divided between machines
        ([{"CPU": 64, "GPU": 4}], (2, 1.0, 1.0), 2),
        ([{"CPU": 64}], (1, 1.0, 1.0), 0),
        ([], (1, 1.0, 0.0), 0),
    ],
)
def test_as_many_trials_at_once_as_fit_wherever_their_drivers_lie(nodes, need, count):
    assert driver.max_concurrent_trials(nodes, *need) == count


def test_a_trial_that_cannot_fit_is_refused_with_what_is_missing(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    chosen = config.from_values(values() | {"cluster": {"cpus_per_worker": 500.0}}, Path("test"))
    with (
        pytest.raises(
            ClusterError,
            match=r"a trial needs 500 CPUs, .* are free: lower tune.workers .* cluster.cpus_per_worker",
        ),
        driver.connected(chosen),
    ):
        pass


def found():
    trials = [
        trial(0, 300.0, 90.0),
        trial(
            1,
            WORST,
            state="diverged",
            values={"sampler.step_size": 0.9, "objective.energy_penalty": 0.9},
        ),
        trial(2, 200.0, state="stopped"),
        trial(
            3, 150.0, 40.0, values={"sampler.step_size": 0.0123, "objective.energy_penalty": 0.2}
        ),
        trial(
            4,
            120.0,
            state="stopped",
            values={"sampler.step_size": 0.001, "objective.energy_penalty": 0.5},
        ),
        trial(5, state="waiting"),
    ]
    finals = [trial(i, score) for i, score in enumerate([50.0, 52.0, 51.0, 40.0, 43.0, 41.0])]
    return SearchResult(
        trials, finals, [{}, trials[3].values], 90, {"search": 8.0, "comparison": 4.0}
    )


def test_the_report_is_complete_and_honest(tmp_path):
    chosen = tuned_params()
    out, tuned = tmp_path / "out", tmp_path / "tuned.yaml"
    metrics = report.write(chosen, found(), out, ROOT / "params.yaml", tuned)
    compared = metrics["comparison"]
    assert compared["file"]["mean"] == 51 and compared["tuned"]["mean"] == pytest.approx(
        41.33, abs=0.01
    )
    assert (
        compared["is_better"]
        and compared["is_certain"]
        and metrics["num_diverged"] == 1
        and metrics["best"]["trial"] == 3
    )
    assert "tuned values are better" in report.verdict(metrics)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert (
        (out / "trials.csv").read_text().splitlines()[1].startswith("3,finished,0.0123,0.2,20,40.0")
    )
    assert config.load(tuned).sampler.step_size == 0.0123
    for name in ("parallel.png", "surface.png", "best.png"):
        picture = np.asarray(Image.open(out / "plots" / name).convert("L"))
        assert picture.std() > 15 and (out / "plots" / name).stat().st_size < 100_000


def test_it_says_so_when_nothing_better_was_found_and_keeps_the_file(tmp_path):
    worse = found()
    for t, score in zip(worse.finals[3:], (60.0, 61.0, 62.0), strict=True):
        t.rows[0]["fid_clf"] = score
    metrics = report.summary(tuned_params(), worse)
    assert not metrics["comparison"]["is_better"] and "nothing better" in report.verdict(metrics)
    report.write(tuned_params(), worse, tmp_path, ROOT / "params.yaml", tmp_path / "tuned.yaml")
    own = config.load(ROOT / "params.yaml")
    assert (
        config.load(tmp_path / "tuned.yaml") == own
        and "found none better" in (tmp_path / "tuned.yaml").read_text()
    )
    worse.finals[4].state = "diverged"
    metrics = report.summary(tuned_params(), worse)
    assert metrics["comparison"]["tuned"]["mean"] is None and not metrics["comparison"]["is_better"]
    assert "no score" in report.verdict(metrics)


@pytest.mark.parametrize(
    "scores", [[], [math.nan], [5.0], [math.nan, 5.0], [5.0, 5.0, 5.0, 5.0, 5.0]]
)
def test_pictures_of_few_trials(scores):
    known = [trial(i, score) for i, score in enumerate(scores)]
    report.pictures(tuned_params(), SearchResult(known, [], [{}], 90, {"search": 1.0}))


def test_the_live_table_and_line():
    known = [
        trial(0, 300.0, 90.0),
        trial(1, WORST, state="diverged"),
        trial(2, 120.0, state="running"),
        trial(3, state="waiting"),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(known, "fid_clf", 10.0, 75.0, {2: 37}))
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    assert (
        rows[0][:6] == ["2", "of", "4", "trials", "over,", "1:05"]
        and "step_size" in rows[1]
        and "energy_penalty" in rows[1]
    )
    assert rows[2][:4] == ["0", "finished", "20/90", "90"] and rows[3][:4] == [
        "1",
        "diverged",
        "10/90",
        "-",
    ]
    assert rows[4][:4] == ["2", "running", "37/90", "120"]
    assert max(map(len, text.splitlines())) <= 100
    line = report.trials_line(known, "fid_clf", 65.0)
    assert (
        line
        == "1:05  1 finished, 1 diverged, 1 running, 1 waiting  best fid_clf 90 (trial 0, step 20)"
    )


def test_what_pbt_hands_on_is_every_bit_of_the_donor(tmp_path, digits_data):
    """Weights, averages, moments, chains and step; under a digest of its own, so that neither run takes the other's checkpoints."""
    donor = build(params(), digits_data, digest="donor")
    donor.fit(tmp_path / "donor", Silent())
    folder = checkpoint.latest(tmp_path / "donor", "donor")
    note = trial_job.clone_checkpoint(
        tmp_path / "trial", {"sampler.step_size": 0.03}, "settings", folder
    )
    assert (
        note["inherited"] == 12
        and note["from"] == {"digest": "donor", "step": 12}
        and note["digest"] not in ("settings", "donor")
    )
    assert state_of(tmp_path / "trial" / note["digest"][:16]) == state_of(tmp_path / "donor")
    heir = build(
        params(sampler={"step_size": 0.03}, train={"num_steps": 14}),
        digits_data,
        digest=note["digest"],
    )
    own = Silent()
    assert heir.fit(tmp_path / "trial" / note["digest"][:16], own) == 14 and own.starts == [12]
    with pytest.raises(CheckpointError):
        checkpoint.latest(tmp_path / "trial" / note["digest"][:16], "donor")
    (folder / "weights.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"weights.safetensors"):
        trial_job.clone_checkpoint(tmp_path / "other", {}, "settings", folder)


def test_a_record_of_trials_survives_and_forgets_nothing(tmp_path):
    first = trials.TrialStore(
        tmp_path, "search", [trial(0, state="waiting"), trial(1, state="waiting")]
    )
    first.add(first.all[0], {"step": 10, "digest": "a", "fid_clf": 5.0})
    first.add(first.all[0], {"step": 10, "digest": "a", "fid_clf": 5.0})  # told again
    first.add(first.all[1], {"step": 10, "digest": "b", "fid_clf": 4.0})
    first.all[0].state, first.all[1].state = "stopped", "running"
    first.save()
    again = trials.TrialStore(tmp_path, "search", [trial(i, state="waiting") for i in range(3)])
    assert [t.state for t in again.all] == ["stopped", "waiting", "waiting"] and [
        t.index for t in again.left
    ] == [1, 2]
    assert [row["order"] for t in again.all for row in t.rows] == [0, 1]


def test_a_score_is_made_of_the_validation_split_only(tmp_path, digits_data, monkeypatch):
    opened = []
    real = shards.read_split
    monkeypatch.setattr(
        shards,
        "read_split",
        lambda index, split, tars=None: opened.append(split) or real(index, split, tars),
    )
    from ebm_dist.metrics import features

    index = shards.read_index(digits_data)
    features.train(features.Config(num_steps=5), index, tmp_path / "classifier")
    opened.clear()
    trained = build(params(), digits_data, digest="digest")
    trained.fit(tmp_path / "run", Silent())
    own = scores.Scorer(
        params().as_dict(), str(digits_data), str(tmp_path / "classifier"), "digest", (4, 12), 50
    )
    own.score_newest(tmp_path / "run")
    (row,) = [
        json.loads(line) for line in (tmp_path / "run" / scores.SCORES).read_text().splitlines()
    ]
    assert (
        row["step"] == 12
        and set(trials.SCORES) < set(row)
        and all(math.isfinite(v) for v in row.values())
    )
    own.score_newest(tmp_path / "run")
    assert len((tmp_path / "run" / scores.SCORES).read_text().splitlines()) == 1 and set(
        opened
    ) == {"val"}
