"""What JSON does not have is refused, with its key."""

import json
import math

import pytest

from ebm_dist import evaluation
from ebm_dist.errors import DataError
from ebm_dist.files import write_json
from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("value", "key", "number"),
    [
        ({"ais": {"low": -math.inf}}, r"ais\.low", "-inf"),
        ({"curves": [{"high": [1.0, math.inf]}]}, r"curves\.0\.high\.1", "inf"),
        ({"a": 1.0, "b": (math.nan,)}, r"b\.0", "nan"),
    ],
)
def test_a_number_that_is_no_json_is_refused_with_its_key(tmp_path, value, key, number):
    with pytest.raises(DataError, match=rf"metrics\.json: {key} is {number}, which JSON"):
        write_json(tmp_path / "metrics.json", value)
    assert not (tmp_path / "metrics.json").exists()


def test_what_is_json_is_written(tmp_path):
    value = {"a": [1, 2.5, None, "NaN", True], "b": {"c": 1e308}}
    write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == value


def test_a_metric_that_a_seed_lacks_has_no_mean():
    reports = {
        0: evaluation.Report({"noise": {"rhat": 1.0, "moved": 2.0}}, {}, {}),
        1: evaluation.Report({"noise": {"moved": 4.0}}, {}, {}),
    }
    for order in ((0, 1), (1, 0)):
        metrics = evaluation.over_seeds({seed: reports[seed] for seed in order}).metrics
        assert metrics["noise"] == {"moved": 3.0}
        assert metrics["seeds"]["0"] == {"noise": {"rhat": 1.0, "moved": 2.0}}


def test_committed_reports_are_json():
    def refuse(name):
        raise ValueError(name)

    for path in [*ROOT.glob("reports/**/*.json"), *ROOT.glob("docs/*.json")]:
        json.loads(path.read_text(), parse_constant=refuse)
