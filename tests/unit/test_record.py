"""The record of a run: damaged, cut off, on a full disk, and what it says of libraries and devices."""

import json
import os

import pytest
import torch

from ebm_dist import faults
from ebm_dist.errors import DataError
from ebm_dist.rng import stream
from ebm_dist.runs import progress, provenance, record
from ebm_dist.runs.record import EVENTS, METRICS, FileReporter, read_lines
from ebm_dist.samplers import langevin, run_chain
from ebm_dist.storage import append

GOOD = [{"step": 2, "energy_gap": 0.5, "time": 1.0}, {"step": 4, "energy_gap": 0.25, "time": 2.0}]
DAMAGED = [
    b"\xff\xfe\x00", b"{", b"[1, 2]", b"null", b"7", b'"step"', b'{"energy_gap": 1}', b'{"step": "x"}',
    b'{"step": null}', b'{"step": 2, "energy_gap": "high"}', b'{"step": 2, "time": null}',
    b'{"event": "start", "step": 0, "world_size": "two"}', b'{"event": "start", "step": 0, "versions": 1}',
    b"[" * 100_000, b"\0" * 100, b"",
]  # fmt: skip


def written(path, *lines, end=b"\n"):
    path.write_bytes(b"\n".join(lines) + end)
    return path


def good(*rows):
    return [json.dumps(row).encode() for row in rows]


@pytest.mark.parametrize("name", [METRICS, EVENTS])
@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_record_is_one_message_wherever_it_is_read(tmp_path, name, line):
    first, last = good(*GOOD)
    path = written(tmp_path / name, first, line, last)
    content = path.read_bytes()
    for read in (
        lambda: list(read_lines(path)),
        lambda: record.check(tmp_path),
        lambda: FileReporter(tmp_path).started(4, GOOD, 0, "resumed"),
        lambda: progress.line(tmp_path, 10, ""),
    ):
        with pytest.raises(DataError, match=rf"{name}:2: damaged: .*; move {name} away"):
            read()
    if name == EVENTS:
        assert path.read_bytes() == content


@pytest.mark.parametrize("tail", [b'{"step": 6, "ener', b"\xff", b"{"])
def test_a_last_line_that_was_cut_off_is_said_and_written_again(tmp_path, caplog, tail):
    path = written(tmp_path / METRICS, *good(*GOOD), tail, end=b"")
    assert list(read_lines(path)) == GOOD
    record.check(tmp_path)
    assert "the last line was cut off" in caplog.text
    FileReporter(tmp_path).started(6, [{"step": s} for s in (2, 4, 6)], 0, "resumed")
    assert list(read_lines(path)) == [*GOOD, {"step": 6}]
    caplog.clear()
    record.check(tmp_path)
    assert not caplog.text


def test_a_display_says_what_is_damaged_and_lives_on(tmp_path, capsys):
    written(tmp_path / EVENTS, b'{"event": "start", "step": 0}')
    with progress.live(tmp_path, 10):
        written(tmp_path / EVENTS, b"[]", b"[]")
    assert "events.jsonl:1: damaged" in capsys.readouterr().out


def test_without_metrics_the_rows_come_from_the_checkpoint(tmp_path):
    FileReporter(tmp_path).started(4, [{"step": 2}, {"step": 4}], 0, "resumed")
    assert [row["step"] for row in read_lines(tmp_path / METRICS)] == [2, 4]


def test_a_line_that_the_disk_refuses_leaves_the_file_as_it_was(tmp_path):
    path = written(tmp_path / METRICS, *good(*GOOD))
    faults.arm("record.append:1:full")
    try:
        with pytest.raises(DataError, match=r"metrics.jsonl: cannot be written \(No space left"):
            FileReporter(tmp_path).metrics({"step": 6}, 1.0)
    finally:
        faults.arm(None)
    assert list(read_lines(path)) == GOOD


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_message():
    from pathlib import Path

    with pytest.raises(DataError, match="No space left on device"):
        append(Path("/dev/full"), b"x\n")


def start(run, step, torch, device="CPU"):
    facts = {"versions": {"torch": torch, "numpy": "2"}, "device": device}
    FileReporter(run, facts=facts).started(step, [], 0, "resumed" if step else "start")


def test_a_resume_with_other_libraries_or_another_device_is_said_in_one_line(
    tmp_path, capsys, caplog
):
    start(tmp_path, 0, "2.8")
    start(tmp_path, 4, "2.8")
    assert record.changes(tmp_path) == []
    start(tmp_path, 8, "2.9", "GPU")
    (change,) = record.changes(tmp_path)
    assert change.startswith("step 8: resumed with torch 2.9 (before: 2.8), GPU (before: CPU):")
    weights = tmp_path / "weights"
    weights.write_bytes(b"")
    assert provenance.of_record(tmp_path, weights) | {"weights": ""} == {
        "versions": {"torch": "2.9", "numpy": "2"},
        "device": "GPU",
        "resumed_with": [change],
        "weights": "",
    }
    with progress.live(tmp_path, 10):  # only what happens now
        start(tmp_path, 9, "3.0", "GPU")
    assert [entry.message for entry in caplog.records] == [
        f"{tmp_path}: {record.changes(tmp_path)[1]}"
    ]


def test_counted_steps_are_shown_without_a_terminal(capsys):
    with progress.counted("classifier", 4) as done:
        for step in range(1, 4):
            done(step)
    assert "classifier: step 3/4  0:00 left" in capsys.readouterr().out


def test_steps_of_chains_are_shown_without_a_terminal(capsys):
    kernel, start = langevin.build(langevin.Config(), bounds=None), torch.zeros(2, 3)
    with progress.chains("samples, model 1 of 1"):
        run_chain(kernel, lambda x: x.square().sum(1), start, 7, stream(0, "chains"))
    run_chain(kernel, lambda x: x.square().sum(1), start, 3, stream(0, "chains"))
    assert capsys.readouterr().out == "samples, model 1 of 1: 0:00  7 steps of chains\n"
