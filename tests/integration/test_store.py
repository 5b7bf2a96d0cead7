"""Runs and data in a real S3-compatible store: the same bits as on disk."""

import json
import tempfile
from pathlib import Path

import pytest

from ebm_dist import storage
from ebm_dist.data import shards
from ebm_dist.datasets import parts
from ebm_dist.errors import CheckpointError, DataError
from ebm_dist.runs import lineage
from ebm_dist.runs.record import EVENTS, METRICS, FileReporter, read_lines
from ebm_dist.training import checkpoint
from infra.local import Stack
from tests import helpers
from tests.helpers import Silent, state_of
from tests.unit.test_parts import written


@pytest.fixture(scope="module")
def stack():
    with tempfile.TemporaryDirectory(prefix="ebm-store-") as folder:
        stack = Stack(Path(folder))
        stack.prepare()
        stack.store()
        yield stack
        stack.down()


@pytest.fixture
def root(stack, monkeypatch, request):
    for name, value in stack.settings().items():
        if name.startswith(("AWS_", "EBM_")):
            monkeypatch.setenv(name, value)
    return storage.store(request.node.name.replace("[", "-").replace("]", ""))


def test_training_in_the_store_gives_the_same_bits_and_resumes(digits_data, tmp_path, root):
    storage.check(root)
    helpers.build(helpers.params(), digits_data).fit(tmp_path, FileReporter(tmp_path))
    index = shards.publish(shards.read_index(digits_data), root / "shards")
    assert not storage.is_local(index.folder)
    for stop_after in (5, 3, None):
        reporter = FileReporter(root / "run") if stop_after is None else Silent(stop_after)
        trainer = helpers.build(helpers.params(), index.folder)
        trainer.fit(root / "run", reporter)
    assert state_of(root / "run") == state_of(tmp_path)
    timeless = lambda run: [
        {k: v for k, v in row.items() if k not in ("seconds", "time")}
        for row in read_lines(run / METRICS)
    ]
    assert timeless(root / "run") == timeless(tmp_path) and len(timeless(tmp_path)) == 6
    assert [event["step"] for event in read_lines(root / "run" / EVENTS)] == [8]
    assert len(list((root / "run").glob("step-*"))) == 2, "older ones are deleted"
    assert lineage.run_digest(helpers.params(), index.digest) == lineage.run_digest(
        helpers.params(), shards.read_index(digits_data).digest
    )


def test_publishing_again_writes_nothing(digits_data, stack, root):
    index = shards.read_index(digits_data)
    shards.publish(index, root)
    files = sorted((stack.folder / "store").rglob(f"{root.name}/**/*.tar"))
    before = [path.stat().st_mtime_ns for path in files]
    shards.publish(index, root)
    assert len(files) == 48 and [path.stat().st_mtime_ns for path in files] == before


@pytest.mark.parametrize("harm", ["truncated", "missing", "manifest"])
def test_a_broken_checkpoint_in_the_store_is_passed_over(digits_data, root, harm):
    helpers.build(helpers.params(), digits_data).fit(root, Silent())
    folder = checkpoint.latest(root)
    assert folder.name == "step-00000012"
    match harm:
        case "truncated":
            storage.write_whole(folder / "weights.safetensors", b"half")
        case "missing":
            (folder / "chains-00002.safetensors").unlink()
        case "manifest":
            (folder / checkpoint.MANIFEST).unlink()
    assert checkpoint.latest(root).name == "step-00000008"
    with pytest.raises(CheckpointError, match=r"truncated|missing"):
        checkpoint.verify(folder)


def test_what_the_store_refuses_is_one_message(root, monkeypatch):
    assert storage.check(root) is None
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)
    with pytest.raises(
        DataError, match=r"cannot be reached .*check AWS_ENDPOINT_URL, the credentials"
    ):
        storage.check(storage.location(str(root)))


def test_stop_file_and_late_record(digits_data, root):
    storage.write_whole(root / "stop", b"")
    assert helpers.build(helpers.params(), digits_data).fit(root, FileReporter(root)) == 0
    state = json.loads(storage.read_bytes(checkpoint.latest(root) / "state.json"))
    assert state["step"] == 0


@pytest.mark.parametrize("kind", ["npy", "npz", "tar"])
def test_parts_in_the_store_are_those_on_a_disk(tmp_path, root, kind):
    local = written(tmp_path / "parts", kind)
    for path in local.iterdir():
        storage.write_whole(root / "parts" / path.name, path.read_bytes())
    indices = [
        shards.write(tmp_path / name, "parts", parts.load(parts.Config(path=str(folder))))
        for name, folder in (("of-disk", local), ("of-store", root / "parts"))
    ]
    for one, other in zip(*(shards.read_split(i, "train") for i in indices), strict=True):
        assert one.equal(other)
    assert parts.stamp(parts.Config(path=str(root / "parts")))
    with pytest.raises(DataError, match="has nothing"):
        parts.load(parts.Config(path=str(root / "absent")))
