import json
import subprocess

import pytest
from ruamel.yaml import YAML
from scipy import stats

from ebm_dist.errors import DataError
from ebm_dist.report import table
from pipelines.results import with_provenance
from tests.helpers import ROOT


@pytest.fixture
def reports(tmp_path):
    def put(path, value):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(value))

    seeds = {str(s): {"fid": v, "floor": 4.0} for s, v in enumerate((10.0, 12.0, 14.0))}
    put("r/samples/metrics.json", {"fid": 12.0, "floor": 4.0, "seeds": seeds})
    facts = {"seconds": 60.0, "workers": 2, "hardware": {"cpu": "c", "cores": 2, "memory_gib": 8}}
    for recipe in ("r", "split-0", "split-1"):
        put(
            f"{recipe}/train/0/run.json",
            facts
            | {"dataset": "d", "is_official": False, "data_digest": "ab" * 32, "run_digest": "x"},
        )
    for recipe, value in (("split-0", 1.0), ("split-1", 3.0)):
        put(f"{recipe}/samples/metrics.json", {"fid": value, "floor": value / 2})
    return tmp_path


ENTRY = {"recipe": "r", "system": "S", "source": "P", "what": "w", "metric": "samples.fid", "published": None, "better": "lower", "baselines": {"chance": 14.5, "other": 13.0}, "beside": {"floor": "samples.floor"}}  # fmt: skip


def test_a_row_is_the_mean_with_a_t_interval_and_what_to_read_it_by(reports):
    row = table.row("id", ENTRY, reports)
    expected = stats.t.interval(0.95, 2, 12.0, stats.sem([10, 12, 14]))
    assert row["reached"] == 12.0 and row["interval"] == pytest.approx(expected)
    assert row["seeds"] == {"0": 10.0, "1": 12.0, "2": 14.0} and row["beside"] == {"floor": 4.0}
    assert table.ranked(row) == [("other", 13.0), ("chance", 14.5)]
    page = table.markdown(
        [row], {"b-fid": {"recipe": "b", "what": "FID", "unmeasured": "needs a GPU"}}
    )
    assert (
        "## Not measured" in page
        and "| `b-fid` | FID | needs a GPU | `dvc repro pipelines/recipes/dvc.yaml:results@b` |"
        in page
    )
    assert "Not measured" not in table.markdown([row], {})
    assert (
        "own files" in page
        and "| `id` | w | none | **12** |" in page
        and "| 13 (other) | tied: baseline | chance 14.5; floor 4 |" in page
    )


def test_a_row_of_one_seed_has_the_interval_of_its_estimate(reports):
    entry = ENTRY | {"recipe": "split-0", "better": "lower", "published": None, "baselines": {}}
    ends = {"interval": ["samples.floor", 1000.0]}
    assert table.row("id", entry, reports)["interval"] is None
    row = table.row("id", entry | ends | {"published": 999}, reports)
    assert row["interval"] == (row["reached"] / 2, 1000.0)
    assert table.verdict(row) == "tied: published"
    assert table.row("id", ENTRY | ends, reports)["interval"] != (4.0, 1000.0)
    unknown = {"interval": ["samples.low", "samples.high"], "published": 999}
    row = table.row("id", entry | unknown, reports)
    assert row["interval"] is None and table.verdict(row) == "won: published (one seed)"


def test_a_published_figure_may_have_been_rounded(reports):
    entry = ENTRY | {"better": "higher", "baselines": {}}
    above = table.row("id", entry, reports)["interval"][1]
    for rounding, verdict in ((0.5, "**lost**: published"), (1.0, "tied: published")):
        row = table.row("id", entry | {"published": above + 0.8, "rounding": rounding}, reports)
        assert table.verdict(row) == verdict


def test_parts_of_an_average_are_no_replicates(reports):
    for name, values in (("split-0", (1.0, 2.0, 9.0)), ("split-1", (4.0, 7.0))):
        seeds = {str(seed): {"fid": value} for seed, value in enumerate(values)}
        (reports / name / "samples/metrics.json").write_text(json.dumps({"seeds": seeds}))
    entry = ENTRY | {"recipe": ["split-0", "split-1"], "is_average": True, "beside": {}}
    assert table.row("id", entry, reports)["seeds"] == {"0": 2.5, "1": 4.5}


@pytest.mark.parametrize(
    ("metric", "values", "low", "high"),
    [
        ("density.quality", [0.9939, 0.9877, 0.9999], None, 1.0),
        ("anomaly.scores.E and doubt (model).auprc", [0.99, 1.0], None, 1.0),
        ("ood.constant.low", [0.001, 0.04], 0.0, None),
        ("samples.smallest_class_share", [0.0, 0.01], 0.0, None),
        ("density.kl", [0.001, 0.02], 0.0, None),
        ("samples.fid_clf", [1.0, 9.0], 0.0, None),
        ("continual.forgetting", [-0.001, 0.02], None, None),
        ("classification.nll", [-0.001, 0.02], None, None),
        ("density.nll.truth", [0.99, 1.0], None, None),
    ],
)
def test_an_interval_ends_at_the_range_of_its_metric(metric, values, low, high):
    ends = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values))
    expected = (ends[0] if low is None else low, ends[1] if high is None else high)
    assert table.interval(values, metric) == pytest.approx(expected)
    assert low is None or ends[0] < low
    assert high is None or ends[1] > high


def test_a_metric_that_is_undefined_in_a_report_is_named(reports):
    with pytest.raises(DataError, match=r"no metric rhat in the report"):
        table.row("id", ENTRY | {"metric": "samples.rhat"}, reports)
    with pytest.raises(DataError, match=r"metric rhat of the report is undefined"):
        table.value_at({"rhat": None}, "rhat")


def test_replicates_may_be_recipes_and_references_may_be_of_another(reports):
    entry = ENTRY | {
        "recipe": ["split-0", "split-1"],
        "baselines": {"other": "r/samples.fid"},
        "beside": {"floor": "samples.floor", "share": "samples.floor / samples.fid"},
    }
    row = table.row("id", entry, reports)
    assert (
        row["reached"] == 2.0
        and row["seeds"] == {"split-0": 1.0, "split-1": 3.0}
        and len(row["seconds"]) == 2
    )
    assert row["baselines"] == {"other": 12.0} and row["beside"] == {"floor": 1.0, "share": 0.5}
    assert row["command"].split()[2:] == [
        f"pipelines/recipes/dvc.yaml:results@split-{i}" for i in (0, 1)
    ]


def test_a_missing_report_names_the_command_that_makes_it(reports):
    with pytest.raises(DataError, match=r"dvc repro pipelines/recipes/dvc\.yaml:results@gone"):
        table.row("id", ENTRY | {"recipe": "gone"}, reports)


@pytest.mark.parametrize(
    ("better", "published", "baselines", "expected"),
    [
        ("lower", None, {"a": 11.0}, "tied: baseline"),
        ("lower", 20.0, {"a": 30.0, "b": 19.0}, "won: published and baseline"),
        ("lower", 20.0, {"a": 30.0, "b": 1.0}, "won: published, **lost**: baseline"),
        ("higher", 20.0, {"a": 1.0, "b": 2.0}, "**lost**: published, won: baseline"),
        ("higher", None, {}, "-"),
        (None, 20.0, {"a": 1.0}, "-"),
    ],
)
def test_a_verdict_is_of_the_strongest_baseline(reports, better, published, baselines, expected):
    """The figure is 12, within 7.03 to 16.97."""
    entry = ENTRY | {"better": better, "published": published, "baselines": baselines}
    assert table.verdict(table.row("id", entry, reports)) == expected


def test_a_row_of_one_seed_ties_only_with_its_own_value(reports):
    entry = ENTRY | {"recipe": "split-0", "baselines": {"a": 1.001}}
    assert table.verdict(table.row("id", entry, reports)) == "won: baseline (one seed)"
    assert table.verdict(table.row("id", entry | {"published": 1.0}, reports)).startswith("tied")


def test_the_readme_shows_the_headlines_with_their_verdicts_and_keeps_the_rest(reports):
    first, second = ENTRY | {"headline": "first"}, ENTRY | {"what": "second"}
    other = ENTRY | {
        "system": "S(a | b)",
        "recipe": ["split-0", "split-1"],
        "published": 2.5,
        "headline": "other",
    }
    rows = [
        table.row(name, entry, reports)
        for name, entry in {"one": first, "two": second, "three": other}.items()
    ]
    page = table.renewed(
        "before\n<!-- python -m pipelines.results -->\nold\n<!-- end -->\nafter\n", rows
    )
    assert (
        page.startswith("before\n")
        and page.endswith("\nafter\n")
        and "old" not in page
        and "second" not in page
    )
    assert table.renewed(page, rows) == page
    assert (
        "| [first](docs/results.md#r) | none | **12** (7.032 to 16.97) | 13 (other) | tied: baseline | unknown |"
        in page
    )
    rows[0] |= {"commit": "0123456789abcdef", "stale": ["the code has changed"], "published": 5.0}
    page = table.renewed(page, rows)
    assert "| 13 (other) | **lost**: published, tied: baseline | 0123456789, stale |" in page
    assert "| [other](docs/results.md#split) | 2.5 | **2** (-10.71 to 14.71) |" in page
    with pytest.raises(DataError, match="no place for the table"):
        table.renewed("nothing here", rows)


def test_a_system_has_a_page_with_pictures_every_figure_and_the_files_that_made_it(reports):
    rows = [table.row(name, ENTRY | {"what": f"figure {name}"}, reports) for name in ("one", "two")]
    page = table.system_page(rows, ["../images/r.png"], {"r": "seed: 0\n"})
    assert (
        page.startswith("# S\n")
        and "![S](../images/r.png)" in page
        and "```yaml\nseed: 0\n```" in page
    )
    for text in (
        "## one",
        "## two",
        "Figure one.",
        "| reached | **12** |",
        "| baseline: chance | 14.5 |",
        "results@r`, 60 s of training a seed",
    ):
        assert text in page, text


MEASURED = {  # row: the strongest baseline of its metrics, looked up by hand
    "semi-spirals-accuracy": "spreading",
    "semi-spirals-random-accuracy": "propagation",
    "semi-mnist-accuracy": "without the density",
    "mnist-classes-auprc-1": "energy (labels alone)",
    "ood-cifar10-mean-auroc": "PCA residual, two-sided",
    "fce-8gaussians-kl": "noise of a Gaussian",
    "kdd99-f1": "distance to 5 nearest",
    "split-mnist-accuracy": "a Gaussian for each class",
    "completion-mse-ratio": "training image with the nearest upper half",
    "igebm-mnist-fid-clf": "fitted Gaussian",
    "rbm-mnist-nats": "independent pixels",
}


def test_the_strongest_baseline_of_the_metrics_is_the_one_shown():
    rows = {row["id"]: row for row in json.loads((ROOT / "docs/results.json").read_text())}
    for name, label in MEASURED.items():
        assert table.ranked(rows[name])[0][0] == label, name
    for row in rows.values():
        suite, _, key = row["metric"].partition(".")
        path = ROOT / f"reports/{row['recipes'][0]}/{suite}/metrics.json"
        best = json.loads(path.read_text()).get("best_baseline", {})
        kind = key.rpartition(".")[2]
        if len(row["recipes"]) == 1 and kind in best:  # as the suite itself chose
            assert table.ranked(row)[0][1] >= best[kind], row["id"]


def test_the_committed_pages_are_what_the_committed_metrics_give():
    entries = YAML(typ="safe", pure=True).load((ROOT / "pipelines/results.yaml").read_text())
    unmeasured = {name: entry for name, entry in entries.items() if "unmeasured" in entry}
    assert not any(
        list((ROOT / "reports" / recipe).glob("*/metrics.json"))
        for entry in unmeasured.values()
        for recipe in table.recipes_of(entry)
    )
    rows = [
        table.row(name, entry, ROOT / "reports")
        for name, entry in entries.items()
        if name not in unmeasured
    ]
    rows = [with_provenance(row, ROOT / "reports") for row in rows]
    git = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if git.stdout.strip() != "false":
        pytest.skip("the commits of older rows are in the history, which is not here")
    assert (ROOT / "docs/results.md").read_text() == table.markdown(rows, unmeasured)
    assert (ROOT / "docs/lost.md").read_text() == table.lost(rows)
    readme = (ROOT / "README.md").read_text()
    assert readme == table.renewed(readme, rows)


def test_each_system_that_lost_says_why():
    rows = json.loads((ROOT / "docs/results.json").read_text())
    for name, of_system in table.systems(rows).items():
        has_lost = any("lost" in table.verdict(row) for row in of_system)
        assert has_lost == any(row["why"] for row in of_system), name
    page = table.lost(rows)
    assert page.count("\n## ") == sum(bool(row["why"]) for row in rows)
