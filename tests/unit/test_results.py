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


ENTRY = {"recipe": "r", "system": "S", "source": "P", "what": "w", "metric": "samples.fid", "published": None, "reference": {"floor": "samples.floor", "chance": 0.5}}  # fmt: skip


def test_a_row_is_the_mean_with_a_t_interval_and_what_to_read_it_by(reports):
    row = table.row("id", ENTRY, reports)
    expected = stats.t.interval(0.95, 2, 12.0, stats.sem([10, 12, 14]))
    assert row["reached"] == 12.0 and row["interval"] == pytest.approx(expected)
    assert row["seeds"] == {"0": 10.0, "1": 12.0, "2": 14.0} and row["reference"] == {
        "floor": 4.0,
        "chance": 0.5,
    }
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
        and "floor 4; chance 0.5" in page
    )


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


def test_replicates_may_be_recipes_and_references_may_be_of_another(reports):
    entry = ENTRY | {
        "recipe": ["split-0", "split-1"],
        "reference": {"floor": "samples.floor", "other": "r/samples.fid"},
    }
    row = table.row("id", entry, reports)
    assert (
        row["reached"] == 2.0
        and row["seeds"] == {"split-0": 1.0, "split-1": 3.0}
        and len(row["seconds"]) == 2
    )
    assert row["reference"] == {"floor": 1.0, "other": 12.0}
    assert row["command"].split()[2:] == [
        f"pipelines/recipes/dvc.yaml:results@split-{i}" for i in (0, 1)
    ]


def test_a_missing_report_names_the_command_that_makes_it(reports):
    with pytest.raises(DataError, match=r"dvc repro pipelines/recipes/dvc\.yaml:results@gone"):
        table.row("id", ENTRY | {"recipe": "gone"}, reports)


def test_the_readme_shows_the_headlines_with_their_verdicts_and_keeps_the_rest(reports):
    higher, lower = (
        {"name": name, "baseline": "floor", "better": name} for name in ("higher", "lower")
    )
    first, second = ENTRY | {"headline": higher}, ENTRY | {"what": "second"}
    other = ENTRY | {
        "system": "S(a | b)",
        "recipe": ["split-0", "split-1"],
        "published": 2.5,
        "headline": lower,
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
        "| [higher](docs/results.md#r) | none | **12** (7.032 to 16.97) | 4 (floor) | ahead of baseline | unknown |"
        in page
    )
    rows[0] |= {"commit": "0123456789abcdef", "stale": ["the code has changed"], "published": 13.0}
    page = table.renewed(page, rows)
    assert "| 4 (floor) | **behind** published, ahead of baseline | 0123456789, stale |" in page
    assert "| [lower](docs/results.md#split) | 2.5 | **2** (-10.71 to 14.71) |" in page
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
        "| chance | 0.5 |",
        "results@r`, 60 s of training a seed",
    ):
        assert text in page, text


def test_the_committed_pages_are_what_the_committed_metrics_give():
    entries = YAML(typ="safe", pure=True).load((ROOT / "pipelines/results.yaml").read_text())
    unmeasured = {name: entry for name, entry in entries.items() if "unmeasured" in entry}
    assert not any(
        list((ROOT / "reports" / entry["recipe"]).glob("*/metrics.json"))
        for entry in unmeasured.values()
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
    readme = (ROOT / "README.md").read_text()
    assert readme == table.renewed(readme, rows)
