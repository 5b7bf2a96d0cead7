"""The command for a GPU: files in parts, shares of the time, what is missing. No part is run here."""

import argparse
import json

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import data, parts, toy
from benchmarks.gpu.job import Job, read_record
from ebm_dist import config
from ebm_dist.errors import ConfigError, DataError
from ebm_dist.files import write_json
from ebm_dist.runs import lineage
from tests.integration import test_gpu

MIB = 1 << 20


@pytest.fixture
def split(tmp_path):
    """A file of two and a half MiB, and its three parts in a folder."""
    path = tmp_path / "images.npz"
    path.write_bytes(bytes(range(256)) * (5 * MIB // 512) + b"end")
    written = data.split(path, tmp_path / "parts", part_mib=1)
    assert [p.name for p in written] == [
        *(f"images.npz.part-00{i}" for i in range(3)),
        "images.npz.parts.json",
    ]
    assert all(p.stat().st_size <= MIB for p in written)
    return path


def test_a_file_is_joined_when_its_last_part_has_arrived(split, tmp_path):
    folder, target = tmp_path / "parts", tmp_path / "data"
    target.mkdir()
    late = folder / "images.npz.part-001"
    content = late.read_bytes()
    for arrived, state in ((None, "missing"), (content[:-1], "altered or cut off")):
        late.unlink(missing_ok=True)
        if arrived is not None:
            late.write_bytes(arrived)
        (line,) = data.join(folder, target)
        assert f"1 of 3 parts to bring: images.npz.part-001 {state}" in line
        assert not list(target.iterdir())
    late.write_bytes(content)
    assert [line.partition(": ")[2] for line in data.join(folder, target)] == ["joined of 3 parts"]
    assert (target / "images.npz").read_bytes() == split.read_bytes()
    assert [line.partition(": ")[2] for line in data.join(folder, target)] == ["is there"]
    (target / "images.npz").write_bytes(b"cut off")
    list(data.join(folder, target))
    assert (target / "images.npz").read_bytes() == split.read_bytes()


@pytest.mark.parametrize(
    "card",
    [
        "[]",
        "{",
        json.dumps({"name": "../images.npz", "sha256": "", "parts": {}}),
        json.dumps({"name": "images.npz", "sha256": "", "parts": {"/etc/passwd": ""}}),
        json.dumps({"name": "images.npz", "sha256": None, "parts": {}}),
        json.dumps({"name": "images.npz", "sha256": "", "parts": [1]}),
    ],
)
def test_a_list_of_parts_that_is_none_is_refused(tmp_path, card):
    (tmp_path / "images.npz.parts.json").write_text(card)
    with pytest.raises(DataError, match=r"not a list of parts .*--split"):
        list(data.join(tmp_path, tmp_path))


def test_parts_need_a_file_and_a_list(tmp_path):
    with pytest.raises(DataError, match="no list of parts"):
        list(data.join(tmp_path, tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        data.split(tmp_path / "absent.npz", tmp_path / "parts", 1)


def arguments(folder, **changes):
    values = {"out": folder / "out", "work": folder / "work", "minutes": 10.0, "toy": True}
    values |= {"only": list(parts.PARTS), "again": False, "data_parts": None}
    return argparse.Namespace(**values | changes)


@pytest.fixture
def calls(monkeypatch):
    """Parts that end at once: name and limit of each in turn. The third one fails."""
    limits: dict[str, float] = {}

    def run_apart(part, args, limit):
        limits[part.name] = limit
        return "failed" if len(limits) == 3 else "complete"

    monkeypatch.setattr(command, "run_apart", run_apart)
    return limits


def test_time_that_a_part_leaves_goes_to_those_after_it(tmp_path, calls):
    assert command.run_all(arguments(tmp_path)) == 1  # one has failed, and the rest ran
    assert list(calls) == list(parts.PARTS)
    left = 1.0
    for name, part in parts.PARTS.items():
        assert calls[name] == pytest.approx(600 * part.share / left, abs=2)
        left -= part.share
    assert calls["stackedmnist-10000"] == pytest.approx(600, abs=2)


def test_complete_parts_are_left_out_unless_asked_for_again(tmp_path, calls, capsys):
    for name, status in (("tests", "complete"), ("langevin", "partial")):
        write_json(tmp_path / f"out/{name}.json", {"status": status, "is_toy": True})
    (tmp_path / "work/tests").mkdir(parents=True)
    command.run_all(arguments(tmp_path, only=["tests", "langevin"]))
    assert list(calls) == ["langevin"] and "tests: complete already" in capsys.readouterr().out
    command.run_all(arguments(tmp_path, only=["tests"], again=True))
    assert list(calls) == ["langevin", "tests"]
    assert not (tmp_path / "work/tests").exists() and not read_record(tmp_path / "out", "tests")


def test_no_part_begins_without_time_for_it(tmp_path, calls, capsys):
    assert command.run_all(arguments(tmp_path, minutes=0.01)) == 0
    assert not calls and "tests: not started, 1 s are left" in capsys.readouterr().out


def test_a_rehearsal_is_not_taken_for_a_measurement(tmp_path, calls, monkeypatch):
    write_json(tmp_path / "out/langevin.json", {"status": "complete", "is_toy": True})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"langevin.json: is of a rehearsal.*--out"):
        command.run_all(arguments(tmp_path, toy=False))
    assert not calls


def test_without_a_gpu_there_is_one_message(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"torch sees no GPU on this machine; .*--toy"):
        command.run_all(arguments(tmp_path, toy=False))
    assert not calls and not (tmp_path / "out").exists()


def job(folder, *, is_toy=False, name="part"):
    return Job(name, folder / "out", folder / "work", until=1e12, is_toy=is_toy)


def test_a_part_says_which_files_it_lacks(tmp_path, monkeypatch):
    run = parts.PARTS["igebm-cifar10"].run
    monkeypatch.delenv("EBM_DATA_DIR", raising=False)
    with pytest.raises(parts.MissingError, match=r"needs cifar10.npz.*set EBM_DATA_DIR"):
        run(job(tmp_path))
    monkeypatch.setenv("EBM_DATA_DIR", str(tmp_path))
    (tmp_path / "svhn.npz").write_bytes(b"")
    with pytest.raises(parts.MissingError, match=r"cifar10.npz, textures.npz missing.*--split"):
        run(job(tmp_path))


def test_a_part_with_a_broken_file_lacks_it(tmp_path):
    (tmp_path / "work/toy-data").mkdir(parents=True)
    (tmp_path / "work/toy-data/photos.npz").write_bytes(b"PK cut off")
    with pytest.raises(parts.MissingError, match=r"photos.npz"):
        parts.PARTS["igebm-cifar10"].run(job(tmp_path, is_toy=True))


def test_a_training_here_is_the_run_of_the_recipe(tmp_path):
    here = parts.params_of(job(tmp_path), parts.CIFAR10, parts.SOONER_SAVED)
    recipe = config.load(parts.RECIPES / f"{parts.CIFAR10}.yaml")
    assert here.train.checkpoint_every < recipe.train.checkpoint_every
    assert lineage.run_digest(here, "data") == lineage.run_digest(recipe, "data")


@pytest.mark.parametrize("num_channels", [3, 4])
def test_stacked_digits_have_the_published_width(tmp_path, num_channels):
    recipe = "meg-stackedmnist" if num_channels == 3 else "meg-stackedmnist-10000"
    params = parts.params_of(job(tmp_path), recipe, parts.WIDE)
    assert params.dataset.num_channels == num_channels
    assert params.objective.loss == "relativistic"  # of the recipe
    assert max(params.energy.channels) == max(params.objective.generator.channels) == 512
    assert params.objective.generator.latent_size == 128 and params.cluster.use_gpu


def test_the_record_names_the_circumstances_and_is_kept(tmp_path):
    first = job(tmp_path)
    first.write(rows=[1])
    record = read_record(tmp_path / "out", "part")
    assert record["status"] == "running" and record["rows"] == [1]
    (call,) = record["calls"]
    assert {"hardware", "versions", "driver", "commit", "seconds"} <= set(call)
    second = job(tmp_path)
    assert second.record["rows"] == [1] and len(second.record["calls"]) == 2


def test_toy_sizes_are_those_of_each_recipe(tmp_path):
    for recipe in (parts.CIFAR10, "meg-stackedmnist", "meg-stackedmnist-10000"):
        params = parts.params_of(job(tmp_path, is_toy=True), recipe, {})
        assert params.train.num_steps <= 12 and not params.cluster.use_gpu
    assert toy.PRECISION.chains <= 20 and all(case.num_chains <= 4 for case in toy.CASES)


@pytest.mark.parametrize("recipe", test_gpu.FAMILY)
def test_the_gpu_tests_have_valid_settings(tmp_path, recipe):
    params = config.from_values(test_gpu.settings(recipe, tmp_path), tmp_path)
    assert params.train.num_steps <= 2 * params.train.num_tasks
