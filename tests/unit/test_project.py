"""A project on the user's own data: tables, anomalies, the files that init writes, scores."""

import contextlib
import csv
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from ruamel.yaml import YAML

from ebm_dist import config, evaluation
from ebm_dist.cli import commands, project
from ebm_dist.config import module_of
from ebm_dist.data import shards
from ebm_dist.datasets import arrays
from ebm_dist.errors import ConfigError, DataError, EbmError
from ebm_dist.runs import lineage
from pipelines import digests, prepare
from tests.unit.test_own_models import prepared, trained

RNG = np.random.default_rng(0)


def load(path, **keys):
    return arrays.load(arrays.Config(path=str(path), **keys))


def rows_of(data):
    return np.concatenate([part.x for part in data.splits.values()])


def table(folder, text, name="table.csv"):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("head", ["a,b,y\n", ""])
def test_a_csv_has_the_rows_of_its_lines(tmp_path, head, separator):
    lines = "".join(f"{i / 4},{-i},{i % 2}\n" for i in range(1, 21))
    data = load(table(tmp_path, (head + lines).replace(",", separator)))
    rows = rows_of(data)[rows_of(data)[:, 0].argsort()]
    expected = np.array([[i / 4, -i] if head else [i / 4, -i, i % 2] for i in range(1, 21)])
    np.testing.assert_array_equal(rows, expected)
    assert (data.class_names, data.num_classes) == ((("0", "1"), 2) if head else ((), 0))
    assert data.standardisation is not None


def test_a_parquet_is_read_like_a_csv(tmp_path):
    columns = {"a": np.arange(20) / 4, "b": np.arange(20) % 3 == 0, "kind": ["x", "y"] * 10}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", labels="kind")
    assert data.class_names == ("x", "y") and rows_of(data).shape == (20, 2)
    with pytest.raises(DataError, match=r"1 columns are not numbers: 'kind'; .*dataset.labels"):
        load(tmp_path / "t.parquet")


def test_labels_that_are_named_must_be_there(tmp_path):
    np.savez(tmp_path / "x.npz", x=RNG.random((20, 3)), y=np.arange(20) % 2)
    for path in (tmp_path / "x.npz", table(tmp_path, "a,b\n1,2\n3,4\n")):
        with pytest.raises(DataError, match="has no labels 'kind'"):
            load(path, labels="kind")


def test_integers_late_in_a_file_may_be_fractions(tmp_path):
    """Arrow infers the type of a column from a block of the file, by default its first MiB."""
    text = "a,b\n" + "1000000,2000000\n" * 150_000 + "0.5,1\n"
    assert rows_of(load(table(tmp_path, text))).min() == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,\n", "1 columns have missing values: 'b'"),
        ("a,b\n1,2\n3,NaN\n", "1 columns have missing values: 'b'"),
        ("a,b\n1,2\n3,inf\n", "NaN or infinite"),
        ("a,b\n1,2\n3,red\n", "1 columns are not numbers: 'b'"),
        ("a,a\n1,2\n3,4\n", "1 columns are named twice: 'a'"),
        ("y\n1\n2\n", "no column of numbers"),
        ("a,y\n1,-1\n2,1\n", "integers from 0 or strings"),
        ("a,b\n1,2\n3\n", "not a readable table"),
        ("", "not a readable table"),
        ("a,b\n9007199254740993,1\n2,3\n", "integers that a float cannot hold"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load(table(tmp_path, text))


def test_a_parquet_that_is_none(tmp_path):
    with pytest.raises(DataError, match="not a readable table"):
        load(table(tmp_path, "PAR1", "t.parquet"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_that_are_named_are_read_in_that_order(tmp_path, name):
    columns = {"b": [1.0] * 3, "note": ["x", None, "z"], "a": [2.0] * 3, "y": [0, 1, 1]}
    if name == "t.csv":
        table(tmp_path, "b,note,a,y\n1,x,2,0\n1,,2,1\n1,z,2,1\n", name)
    else:
        parquet.write_table(pa.table(columns), tmp_path / name)
    data = load(tmp_path / name, columns=("a", "b"), standardise=False, test_fraction=0)
    assert rows_of(data).tolist() == [[2.0, 1.0]] * 3 and data.class_names == ("0", "1")
    assert "columns that are not used: 'note'" in data.notes
    with pytest.raises(DataError, match=r"2 columns are missing: 'c', 'd'; the file has 'b', 'no"):
        load(tmp_path / name, columns=("a", "c", "d"))


def test_a_column_that_numbers_the_rows_is_named(tmp_path):
    data = load(table(tmp_path, "id,b\n" + "".join(f"{i},{i % 3}\n" for i in range(1, 30))))
    assert any("'id' numbers the rows" in note for note in data.notes)


@pytest.mark.parametrize("samples", ["images", "x", "X", "data"])
@pytest.mark.parametrize("labels", ["labels", "y"])
def test_names_of_arrays(tmp_path, samples, labels):
    x, y = RNG.random((20, 3)), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", **{samples: x, labels: y})
    assert load(tmp_path / "a.npz").num_classes == 2
    parts = {f"train_{samples}": x, f"train_{labels}": y, f"test_{samples}": x, f"test_{labels}": y}
    np.savez(tmp_path / "b.npz", **parts)
    assert len(load(tmp_path / "b.npz").splits["test"].x) == 20


@pytest.mark.parametrize("anomalies", [("b",), ("a", "c")])
def test_anomalies_are_test_samples_of_one_last_class(tmp_path, anomalies):
    names = np.array(["a", "b", "c"])[np.arange(60) % 3]
    np.savez(tmp_path / "x.npz", x=np.arange(60.0)[:, None], y=names)
    data = load(tmp_path / "x.npz", anomalies=anomalies, standardise=False)
    is_anomaly = np.isin(names, anomalies)
    for split, (x, y) in data.splits.items():
        found = np.isin(x[:, 0], np.flatnonzero(is_anomaly))
        assert found.sum() == (is_anomaly.sum() if split == "test" else 0)
        np.testing.assert_array_equal(y == data.num_classes, found)
    assert data.class_names[-1] == "/".join(anomalies) and len(data.class_names) == (
        data.num_classes + 1
    )
    for wrong in (("d",), ("a", "b", "c")):
        with pytest.raises(DataError, match="name some of the classes"):
            load(tmp_path / "x.npz", anomalies=wrong)


def test_without_anomalies_the_settings_have_no_new_keys():
    """The names of runs from before these keys stay."""
    plain = config._plain(arrays.Config(path="x.npz"))
    assert not {"labels", "anomalies"} & set(plain)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The working directory of a new project; the data are beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def written(data, task="generate", name="mine", **options):
    """The files of init, their settings, and the data as it saw them."""
    seen = project.inspect(data, task, **options)
    assert all("\n" not in line for line in project.describe(seen))
    content = project.files(seen, task, name)
    path, stages = project.write(name, content)
    params = config.load(path)
    matrix = YAML(typ="safe", pure=True).load(stages.read_text())["stages"]["evaluate"]["matrix"]
    assert matrix["suite"] == list(params.evaluation)
    assert set(params.evaluation) | set(content.left_out) == set(project.SUITES[task])
    return params, seen


def check(params, folder):
    """Whether the stages take these settings and data; comparison sets are in test_prepare."""
    data = module_of(params.dataset).load(params.dataset)
    index = shards.write(folder / "prepared", "arrays", data)
    evaluation.check(params, index, dict.fromkeys(params.comparison_datasets, index))
    assert params.train.batch_size <= max(2, index.num_samples("train"))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from([(1,), (3,), (30,), (5, 5), (20, 20), (3, 12, 12), (80, 80, 3)]),
    st.sampled_from(["uint8", "uint16", "bool", "float32", "float64", "unit"]),
    st.integers(12, 60),
    st.sampled_from([0, 2, 3]),
    st.sampled_from(project.TASKS),
)
def test_every_written_file_loads_and_fits_its_data(
    tmp_path_factory, shape, kind, count, num_classes, task
):
    folder = tmp_path_factory.mktemp("any")
    x = RNG.random((count, *shape))
    if kind in ("float32", "float64"):
        x = x * 1000 - 300
    elif kind != "unit":
        x = x * {"uint8": 256, "uint16": 65536, "bool": 2}[kind]
    x = x.astype("float32" if kind == "unit" else kind)
    labels = {"y": np.arange(count) % num_classes} if num_classes else {}
    np.savez(folder / "x.npz", x=x, **labels)
    (folder / "project").mkdir()
    with contextlib.chdir(folder / "project"):
        if task == "classify" and not num_classes:
            with pytest.raises(DataError, match="labels of at least two classes"):
                written(folder / "x.npz", task)
            return
        anomalies = ("1",) if num_classes and task == "anomaly" else ()
        params, _ = written(folder / "x.npz", task, anomalies=anomalies)
        check(params, folder)


def test_few_samples_leave_out_suites(empty, tmp_path):
    np.savez(tmp_path / "x.npz", x=RNG.random((4, 3)), y=np.arange(4) % 2)
    with pytest.raises(DataError, match=r"no suite can evaluate .* needs 2 samples"):
        written(tmp_path / "x.npz", "classify")
    assert list(empty.iterdir()) == []
    content = project.files(project.inspect(tmp_path / "x.npz", "generate"), "generate", "mine")
    assert {"samples", "histogram", "ood"} == set(content.left_out)
    assert "needs 2 samples in the test split" in content.left_out["ood"]
    lines = list(project.describe(project.inspect(tmp_path / "x.npz", "generate")))
    assert "note        1 test samples: figures of the suites say little" in lines


def test_what_is_seen_of_a_table(empty, tmp_path):
    x = np.concatenate([RNG.normal(size=(50, 4)), np.zeros((10, 4))])
    x[:, 2] = 7
    x[50:] = x[0]
    np.savez(tmp_path / "x.npz", X=x, y=np.array([0] * 55 + [1] * 5))
    params, seen = written(tmp_path / "x.npz", "anomaly")
    text = "\n".join(project.describe(seen))
    for part in ("60 rows of 4 columns", "0 (55), 1 (5)", "duplicates  10", "constant    1 of 4"):
        assert part in text
    assert params.dataset.anomalies == ("1",)
    assert list(params.evaluation) == ["anomaly", "histogram", "chains"]
    # the test split has anomalies: its energies say nothing of memorisation
    assert [gate.metric for gate in params.register.gates] == ["anomaly.auroc"]


def test_the_only_column_of_text_has_the_labels_if_its_values_recur(empty, tmp_path):
    numbers = RNG.normal(size=(40, 3)).tolist()
    rows = [
        f"{a},{b},{c},{'sick' if i % 9 else 'well'},p{i}" for i, (a, b, c) in enumerate(numbers)
    ]
    path = table(tmp_path, "a,b,c,state\n" + "\n".join(r.rpartition(",")[0] for r in rows))
    params, seen = written(path, "anomaly")
    assert params.dataset.labels == "state" and params.dataset.anomalies == ("well",)
    assert "labels are in column state" in "\n".join(project.describe(seen))
    for head, lines in (
        ("a,b,c,state,patient", rows),  # two columns of text
        ("a,b,c,patient", [f"{a},{b},{c},p{i}" for i, (a, b, c) in enumerate(numbers)]),
    ):
        path = table(tmp_path, head + "\n" + "\n".join(lines))
        with pytest.raises(DataError, match=r"not numbers: .*patient.*--labels of init"):
            project.inspect(path, "anomaly")


@pytest.mark.parametrize(
    ("task", "objective"),
    [("anomaly", "noise_contrastive"), ("generate", "contrastive_divergence")],
)
def test_anomalies_in_tables_are_found_without_chains(empty, tmp_path, task, objective):
    np.save(tmp_path / "x.npy", RNG.normal(size=(40, 3)))
    params, _ = written(tmp_path / "x.npy", task)
    assert config.plugin_name(params.objective) == objective


@pytest.mark.parametrize(
    ("count", "shape", "energy"),
    [
        (400, (20, 20), "mlp"),
        (40, (20, 20), "convnet"),  # the perceptron diverges on few samples
        (400, (20, 20, 3), "convnet"),
        (400, (40, 40), "convnet"),
    ],
)
def test_many_small_grey_images_have_a_perceptron(empty, tmp_path, count, shape, energy):
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (count, *shape)).astype(np.uint8))
    params, _ = written(tmp_path / "x.npy")
    assert config.plugin_name(params.energy) == energy


@pytest.mark.parametrize(
    ("scale", "expected"),
    [(1, {"bounds": (0.0, 1.0)}), (-1, {"bounds": (-1.0, 1.0)}), (9, {"standardise": True})],
)
def test_images_of_floats_have_bounds_or_are_standardised(empty, tmp_path, scale, expected):
    np.save(tmp_path / "x.npy", RNG.random((20, 8, 8)) * scale)
    params, _ = written(tmp_path / "x.npy")
    assert {key: getattr(params.dataset, key) for key in expected} == expected


def test_data_in_the_folder_have_a_relative_path(empty):
    np.save(empty / 'it\'s "x": ü.npy', RNG.random((20, 8)))
    params, _ = written(empty / 'it\'s "x": ü.npy')
    assert params.dataset.path == 'it\'s "x": ü.npy'
    assert project.default_name(empty / 'it\'s "x": ü.npy') == "it-s-x"


def test_folders_of_16_bit_pictures_with_classes(empty, tmp_path):
    for i in range(24):
        folder = tmp_path / "pictures" / ("a" if i % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 65536, (20, 20)).astype(np.uint16)).save(
            folder / f"{i}.png"
        )
    params, seen = written(tmp_path / "pictures")
    assert params.dataset.scale == 65535 and seen.data.class_names == ("a", "b")


def test_a_prepared_project_passes_its_digests_and_refuses_others(empty, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x=RNG.integers(0, 256, (40, 6, 6)).astype(np.uint8))
    written(tmp_path / "x.npz")
    monkeypatch.setattr("sys.argv", ["digests", "--params", "mine.yaml"])
    digests.main()
    monkeypatch.setattr("sys.argv", ["prepare", "--params", "mine.yaml", "--out", "data/mine"])
    prepare.main()
    assert shards.read_index(empty / "data/mine/photos").dataset == "photos"
    stages = YAML(typ="safe", pure=True).load((empty / "dvc.yaml").read_text())["stages"]
    content = digests.read_json(digests.PROJECT, "code")
    for name, stage in stages.items():
        if not stage.get("always_changed"):
            (key,) = next(e["data/code.json"] for e in stage["params"] if "data/code.json" in e)
            assert content[key.partition(".")[0]] and key.partition(".")[0] == name
    other = content | {"prepare": "0" * 16}
    digests.write_json(digests.PROJECT, other)
    with pytest.raises(ConfigError, match=r"data/code.json: is not of this code .*dvc repro code"):
        digests.check("prepare", empty / "mine.yaml")


def ebm_dist(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["ebm-dist", *map(str, words)])
    args = commands.parser().parse_args()
    return getattr(commands, args.main)(args)


def test_no_file_is_overwritten(empty, tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", RNG.random((20, 3)))
    ebm_dist(monkeypatch, "init", "--data", tmp_path / "x.npy")
    before = {path: path.read_bytes() for path in empty.iterdir()}
    assert {path.name for path in before} == {"x.yaml", "dvc.yaml"}
    for name in ("x", "other"):
        with pytest.raises(ConfigError, match="exists already, and nothing is overwritten"):
            ebm_dist(monkeypatch, "init", "--data", tmp_path / "x.npy", name)
    assert {path: path.read_bytes() for path in empty.iterdir()} == before


@pytest.mark.parametrize("name", ["2024", "null", "1e3", "no"])
def test_names_that_yaml_takes_for_other_values(empty, tmp_path, name):
    np.save(tmp_path / "x.npy", RNG.random((20, 3)))
    params, _ = written(tmp_path / "x.npy", name=name)
    assert params.register.model == params.tracking.experiment == name


@pytest.mark.parametrize("name", ["dvc", "a/b", "", "-x", "x.yaml"])
def test_names_that_are_none(empty, name):
    with pytest.raises(ConfigError, match="no name of a project"):
        project.check_free(name)


def test_data_that_are_refused(empty, tmp_path, monkeypatch):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    np.save(tmp_path / "nan.npy", np.full((20, 3), np.nan))
    np.save(tmp_path / "one.npy", np.zeros((1, 3)))
    np.save(tmp_path / "plain.npy", RNG.random((20, 3)))
    np.savez(tmp_path / "three.npz", x=RNG.random((30, 3)), y=np.arange(30) % 3)
    for words, message in (
        (("absent.npy",), "no such file"),
        (("nothing",), "no images in this folder"),
        (("notes.txt",), "not a .npy, .npz, .csv or .parquet"),
        (("nan.npy",), "NaN or infinite"),
        (("one.npy",), "at least 2"),
        (("plain.npy", "--task", "classify"), "labels of at least two classes"),
        (("three.npz", "--task", "anomaly"), "name those that are anomalies"),
        (("three.npz", "--task", "anomaly", "--anomalies", "7"), "name some of the classes"),
    ):
        with pytest.raises(EbmError, match=message):
            ebm_dist(monkeypatch, "init", "--data", tmp_path / words[0], *words[1:])
    assert list(empty.iterdir()) == []
    with pytest.raises(ConfigError, match=r"mine.yaml: missing here; run ebm-dist init"):
        ebm_dist(monkeypatch, "run", "mine")
    with pytest.raises(ConfigError, match=r"dvc.yaml: missing here; run ebm-dist init"):
        ebm_dist(monkeypatch, "run")


def test_a_run_without_a_name_is_of_the_project_here(empty, tmp_path):
    np.save(tmp_path / "x.npy", RNG.random((20, 3)))
    written(tmp_path / "x.npy", name="my-data_2")
    assert project.name_here() == "my-data_2"
    (empty / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(ConfigError, match="no project of ebm-dist init"):
        project.name_here()


def test_scores_are_energies_in_the_order_of_the_rows(tmp_path, monkeypatch):
    x = RNG.normal(size=(60, 3)) * [1, 10, 100] + 50
    dataset = prepared(tmp_path, images=x)
    model = trained(tmp_path, dataset)
    new = RNG.normal(size=(7, 3)) * [1, 10, 100] + 50
    np.save(tmp_path / "new.npy", new)
    table(
        tmp_path, "a,b,c,y\n" + "".join(",".join(map(repr, row.tolist())) + ",1\n" for row in new)
    )
    for name in ("new.npy", "table.csv"):
        out = tmp_path / f"{name}.scores"
        ebm_dist(monkeypatch, "score", tmp_path / "model", tmp_path / name, "--out", out)
        rows = list(csv.DictReader(out.open()))
        assert [int(row["row"]) for row in rows] == list(range(7))
        np.testing.assert_allclose(
            [float(row["score"]) for row in rows], model.energies(model.to_model(new)), rtol=1e-5
        )
    np.save(tmp_path / "wide.npy", np.zeros((3, 4)))
    divided = arrays.Config(path="new.npy", scale=2.0)
    np.testing.assert_array_equal(arrays.read_samples(divided, tmp_path / "new.npy"), new / 2)
    np.save(tmp_path / "below.npy", -abs(new))
    np.testing.assert_array_equal(
        arrays.read_samples(divided, tmp_path / "below.npy"), -abs(new) / 2
    )
    with pytest.raises(DataError, match=r"wide.npy: x: expected samples of shape \(n, 3\)"):
        ebm_dist(monkeypatch, "score", tmp_path / "model", tmp_path / "wide.npy")


def test_rows_to_score_are_matched_by_the_names_of_columns(empty, caplog):
    text = "".join(f"{i},{i % 7},{i % 3},{i > 30}\n" for i in range(40))
    params, _ = written(table(empty, "a,b,c,y\n" + text))
    assert params.dataset.columns == ("a", "b", "c")

    def read(text):
        return arrays.read_samples(params.dataset, table(empty, text, "new.csv")).tolist()

    assert read("id,c,a,b\nx,3,1,2\n") == [[1.0, 2.0, 3.0]]
    assert "columns that are not used: 'id'" in caplog.text
    for wrong in ("a,c\n1,3\n", "A,b,c\n1,2,3\n", "1,2,3\n"):
        with pytest.raises(DataError, match=r"columns are missing: '[ab]'"):
            read(wrong)


def test_nothing_is_asked_of_columns_that_are_not_used(empty, caplog):
    text = "".join(f"{i},{i % 7},{i % 3}\n" for i in range(40))
    params, _ = written(table(empty, "a,b,label\n" + text))
    for new in ("b,a,label\n2,1,good\n2,1,\n", "b,a,y,z,z\n2,1,-1.5,3,4\n2,1,,3,4\n"):
        read = arrays.read_samples(params.dataset, table(empty, new, "new.csv"))
        assert read.tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_a_column_with_fractions_is_a_number_whatever_its_name(empty):
    rows = RNG.normal(size=(40, 2))
    text = "x,y\n" + "".join(f"{a},{b}\n" for a, b in rows.tolist())
    params, seen = written(table(empty, text))
    assert params.dataset.columns == ("x", "y") and not seen.data.num_classes
    whole = "x,y\n" + "".join(f"{a},{i % 3}\n" for i, a in enumerate(rows[:, 0].tolist()))
    path = table(empty, whole, "whole.csv")
    chosen = arrays.Config(path=str(path), columns=("x", "y"))
    data = arrays.load(chosen)
    assert data.num_classes == 0 and data.splits["train"].x.shape[1] == 2
    assert arrays.load(arrays.Config(path=str(path))).num_classes == 3


def test_parquet_of_pandas_has_text_of_any_kind(empty):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(40), "kind": ["good", "bad"] * 20})
    for kind in ("str", "category", "object"):
        frame.astype({"kind": kind}).to_parquet("x.parquet")
        assert arrays.likely_labels(arrays.Config(path="x.parquet")) == "kind"


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
def test_a_file_to_score_has_the_divisor_of_the_training_whatever_its_type(
    empty, tmp_path, monkeypatch, kind
):
    learnt = RNG.integers(0, 200, (60, 3)).astype(kind)
    model = trained(tmp_path, prepared(tmp_path, images=learnt))
    divisor = {"float32": 1.0, "uint8": 255.0, "uint16": 65535.0}[kind]
    assert model.card["divisor"] == divisor
    new = RNG.integers(0, 2, (7, 3))
    expected = model.energies(model.to_model(new / divisor))
    for other in ("uint8", "float64"):
        np.save(tmp_path / "new.npy", new.astype(other))
        if other == "float64" and divisor > 1:
            with pytest.raises(DataError, match="samples are divided by"):
                ebm_dist(monkeypatch, "score", tmp_path / "model", tmp_path / "new.npy")
            continue
        out = tmp_path / f"{other}.csv"
        ebm_dist(monkeypatch, "score", tmp_path / "model", tmp_path / "new.npy", "--out", out)
        scores = [float(row["score"]) for row in csv.DictReader(out.open())]
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_anomalies_are_named_for_their_task_alone(empty, tmp_path):
    np.savez(tmp_path / "x.npz", X=RNG.normal(size=(40, 3)), y=np.arange(40) % 2)
    with pytest.raises(DataError, match="is for --task anomaly"):
        project.inspect(tmp_path / "x.npz", "generate", anomalies=("1",))


def test_a_scored_file_has_the_scale_of_the_data(empty, tmp_path):
    """A file of dark images is no binary data if the model has learnt bytes."""
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (40, 6, 6)).astype(np.uint8))
    np.save(tmp_path / "dark.npy", np.ones((3, 6, 6), np.uint8))
    params, _ = written(tmp_path / "x.npy")
    assert arrays.read_samples(params.dataset, tmp_path / "dark.npy").max() == 1 / 255
    np.savez(tmp_path / "parts.npz", train_x=np.ones((3, 6, 6)), test_x=np.ones((3, 6, 6)))
    with pytest.raises(DataError, match="has the parts train, test"):
        arrays.read_samples(params.dataset, tmp_path / "parts.npz")


def test_an_installed_package_has_no_commit(monkeypatch):
    """It may lie in a folder of another repository."""
    monkeypatch.setattr(lineage, "IS_CHECKOUT", False)
    monkeypatch.delenv("EBM_GIT_COMMIT", raising=False)
    assert lineage.git_state() == {}


@pytest.mark.slow
def test_a_run_in_the_background_of_a_shell_can_be_stopped(empty):
    """Such jobs ignore SIGINT, and so would their children."""
    (empty / "dvc.yaml").write_text("stages: {wait: {cmd: touch started && sleep 100}}")
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from ebm_dist.cli import project, run; run(lambda: sys.exit(project.repro()))"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while not (empty / "started").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM


def test_scores_are_of_samples_as_the_model_has_learnt_them(tmp_path, monkeypatch):
    x = RNG.integers(0, 256, (60, 5, 5), dtype=np.uint8)
    trained(tmp_path, prepared(tmp_path, {"scale": 255.0}, images=x))
    for name, samples, message in (
        ("bytes", x, None),
        ("wider", x.astype(np.uint16) * 257, "wider.npy: x: must lie in the bounds of the data"),
        ("divided", x / 255, "has floats up to 1, and the model's samples are divided by 255"),
    ):
        np.save(tmp_path / f"{name}.npy", samples)
        words = ("score", tmp_path / "model", tmp_path / f"{name}.npy", "--out", tmp_path / "s.csv")
        if message is None:
            ebm_dist(monkeypatch, *words)
            continue
        with pytest.raises(DataError, match=message):
            ebm_dist(monkeypatch, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--count", "-1"), "--count -1: expected at least 1"),
        (("--out", "a.jpg"), "expected a .png or .npy file"),
        (("--out", "none/a.png"), "no folder none; create it"),
    ],
)
def test_what_cannot_be_sampled_is_one_message(monkeypatch, words, message):
    with pytest.raises(ConfigError, match=message):
        ebm_dist(monkeypatch, "sample", "digits", *words)
