import json
import shutil

import pytest
import torch

from ebm_dist import files, storage
from ebm_dist.errors import CheckpointError, DataError
from ebm_dist.training import checkpoint
from ebm_dist.training.reduce import LocalComm


def save(root, step, digest="d", keep=9):
    content = {
        "a.safetensors": files.encode({"w": torch.full((3,), float(step))}),
        "b.json": files.encode({"step": step}),
    }
    return checkpoint.save(root, step, content, LocalComm(), digest=digest, keep=keep)


def test_round_trip_and_the_newest_is_found(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (10, 20, 100):
        save(tmp_path, step)
    folder = checkpoint.latest(tmp_path, "d")
    assert folder is not None and checkpoint.verify(folder) == 100
    assert files.read_tensors(folder / "a.safetensors", "train")["w"].tolist() == [100.0] * 3
    assert files.read_json(folder / "b.json", "train") == {"step": 100}


def test_only_the_newest_are_kept(tmp_path):
    for step in range(5):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "manifest.json").unlink(),
        lambda f: (f / "a.safetensors").unlink(),
        lambda f: (f / "a.safetensors").write_bytes(b""),
        lambda f: (f / "a.safetensors").write_bytes((f / "a.safetensors").read_bytes()[:-1]),
        lambda f: (f / "a.safetensors").write_bytes(
            (f / "a.safetensors").read_bytes()[:-1] + b"\x01"
        ),
        lambda f: (f / "manifest.json").write_text("[" * 10000),
        lambda f: (f / "manifest.json").write_text("{}"),
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
        lambda f: shutil.copy(f.parent / "step-00000010" / "b.json", f / "b.json"),
    ],
)
def test_a_broken_one_is_named_passed_over_and_kept(tmp_path, caplog, harm):
    save(tmp_path, 10)
    broken = save(tmp_path, 20)
    harm(broken)
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000010"
    assert "step-00000020" in caplog.text
    assert broken.exists()


def test_all_broken_is_an_error_none_yet_is_not(tmp_path):
    broken = save(tmp_path, 10)
    (broken / "a.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*a.safetensors"):
        checkpoint.latest(tmp_path)
    (broken / "manifest.json").unlink()  # a first save that was cut off
    assert checkpoint.latest(tmp_path) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    save(tmp_path, 10, digest="other")
    with pytest.raises(CheckpointError, match="of run other"):
        checkpoint.latest(tmp_path, "mine")


def test_cut_off_at_every_write_leaves_the_old_or_the_new_one(tmp_path, monkeypatch):
    """As if the power went at each file of a save in turn."""
    save(tmp_path, 10)
    whole = storage.write_whole
    for fatal in range(5):
        count = iter(range(99))

        def failing(path, content, fatal=fatal, count=count):
            if next(count) == fatal:
                raise KeyboardInterrupt
            whole(path, content)

        monkeypatch.setattr(checkpoint, "write_whole", failing)
        try:
            save(tmp_path, 20)
        except KeyboardInterrupt:
            assert checkpoint.latest(tmp_path) == tmp_path / "step-00000010"
        else:
            assert checkpoint.latest(tmp_path) == tmp_path / "step-00000020"
        monkeypatch.undo()


def test_a_full_disk_is_one_message_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"No space left on device.*free space"):
        save(tmp_path, 20)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-00000010"


def test_encoding_takes_no_objects(tmp_path):
    with pytest.raises(TypeError):
        files.encode({"x": object()})
    (tmp_path / "m").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError):
        files.read_tensors(tmp_path / "m", "train")
    assert json.loads(files.encode([])) == []
