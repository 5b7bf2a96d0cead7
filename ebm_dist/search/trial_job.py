"""The driver of one trial, in a process of its own: a training that is scored at its rungs."""

import hashlib
import json
import math
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ebm_dist import storage
from ebm_dist.config import from_values
from ebm_dist.errors import CodeChangedError, DivergedError, EbmError
from ebm_dist.files import read_json, sha256, write_json
from ebm_dist.runs import cluster, code
from ebm_dist.runs.record import STOP, read_lines
from ebm_dist.search import space, trials
from ebm_dist.search.scores import SCORES, Scorer
from ebm_dist.search.trials import WORST
from ebm_dist.training import checkpoint
from ebm_dist.training.reduce import LocalComm
from ebm_dist.training.reporter import Row

if TYPE_CHECKING:
    from ray import tune

_NOTE = "trial.json"
_LOOK_EVERY_S = 0.3


@dataclass(frozen=True)
class Job:
    """Settings shared by all trials; plain values, because it is sent to other machines."""

    params: dict[str, Any]
    data: str
    classifier: str
    home: str
    digest: str
    code: str
    """digest of the code of the search"""
    rungs: tuple[int, ...]
    """steps at which trials are scored, the last at the end of training"""
    every: int
    """steps between two checkpoints; divides the rungs"""
    seeds: dict[int, int] = field(default_factory=dict)
    """seed of each trial by index"""
    shares_checkpoints: bool = False
    """whether Tune gets a trial's checkpoints, so that other trials can continue from them"""
    timeout_s: float = math.inf

    def resource_tag(self, index: int) -> int:
        """Return the bytes of memory, at most 64 MiB, that mark the workers of a trial.

        The number is a hash, so that it differs between trials.
        """
        return 1 + int.from_bytes(
            hashlib.sha256(f"{self.home}/{index}".encode()).digest()[:4], "big"
        ) % (1 << 26)


def trial_index(name: str) -> int:
    """Return the index in a trial's name, such as ``trial-0007``."""
    return int(name.rsplit("-", 1)[1])


def run_trial(point: dict[str, Any], *, job: Job) -> None:
    """Run one trial in its own process: train, and report scores to Tune as they are written."""
    from ray import tune

    index, values = trial_index(tune.get_context().get_trial_name()), point["values"]
    home = storage.location(job.home) / f"trial-{index:04d}"
    params = from_values(job.params, Path("tune"))
    if code.tune_digest() != job.code:
        raise code.changed(home)
    try:
        trial_config = space.trial_params(
            params, values, job.seeds[index], job.rungs[-1], job.every
        )
        note = _settle(
            home,
            values,
            hashlib.sha256(f"{job.digest}/{index}/{trial_config.digest()}".encode()).hexdigest(),
            tune.get_checkpoint(),
        )
        num_reported, ending = 0, dict[str, Any]()
        digest, last = (
            str(note["digest"]),
            {"step": note["inherited"], "values": values, "digest": note["digest"]},
        )
        run, data = home / digest[:16], storage.location(job.data)
        scorer = Scorer(
            trial_config.as_dict(),
            job.data,
            job.classifier,
            digest,
            job.rungs,
            params.tune.num_samples,
        )
        training = (
            ending,
            trial_config,
            data,
            run,
            digest,
            partial(ScoringReporter, scorer=scorer),
            job.resource_tag(index),
        )
        thread = threading.Thread(target=_train, args=training, daemon=True)
        deadline = time.monotonic() + job.timeout_s
        is_trained = (
            cluster.is_finished(run, digest, trial_config.train) and (run / SCORES).exists()
        )
        if not is_trained and not (run / STOP).exists():
            thread.start()
        while True:
            is_over = not thread.is_alive()
            rows = list(read_lines(run / SCORES))
            for row in rows[num_reported:]:
                last |= row | {"inherited": note["inherited"]}
                newest = checkpoint.latest(run, digest) if job.shares_checkpoints else None
                tune.report(
                    last,
                    checkpoint=tune.Checkpoint.from_directory(newest)
                    if newest and row is rows[-1]
                    else None,
                )
            num_reported = len(rows)
            if is_over:
                break
            if time.monotonic() > deadline:
                ending = {
                    "failed": f"not over after tune.trial_timeout_s = {job.timeout_s:g} s,"
                    f" at step {last['step']}"
                }
                break
            thread.join(_LOOK_EVERY_S)
        if unknown := ending.pop("unknown", None):
            raise unknown
    except CodeChangedError:
        raise
    except EbmError as failed:
        ending = {"failed": str(failed)}
        last = {"step": 0, "values": values, "digest": ""}
    if ending:
        next_rung = next((rung for rung in job.rungs if rung > last["step"]), job.rungs[-1])
        tune.report(last | {**dict.fromkeys(trials.METRICS, WORST), "step": next_rung, **ending})


def _train(ending: dict[str, Any], *training: Any) -> None:
    try:
        cluster.train(*training)
    except DivergedError as diverged:
        ending["diverged"] = str(diverged)
    except CodeChangedError as changed:
        ending["unknown"] = changed
    except EbmError as failed:
        ending["failed"] = str(failed)
    except BaseException as unknown:  # noqa: BLE001 (raised again in the thread of Tune)
        ending["unknown"] = unknown


def _settle(
    home: Path, values: dict[str, Any], digest: str, donated: "tune.Checkpoint | None"
) -> dict[str, Any]:
    """Return which run of a trial this is, ``{values, digest, inherited}``, and note it on disk.

    PBT passes a checkpoint with a different digest: the weights, averages, moments and chains of a
    better trial. It becomes the first checkpoint of a new run, and the new digest depends on the
    settings and on that checkpoint.
    """
    note: dict[str, Any] = read_json(home / _NOTE, "tune") if (home / _NOTE).exists() else {}
    if donated is not None:
        with donated.as_directory() as local:
            donor = Path(local)
            manifest = json.loads((donor / checkpoint.MANIFEST).read_bytes())
            if manifest["digest"] != note.get("digest"):
                return clone_checkpoint(home, values, digest, donor)
    if note.get("values") != values:
        note = {"values": values, "digest": digest, "inherited": 0}
        write_json(home / _NOTE, note)
    return note


def clone_checkpoint(
    home: Path, values: dict[str, Any], digest: str, donor: Path
) -> dict[str, Any]:
    """Start a run of a trial from another trial's checkpoint and return its note.

    Raise :class:`CheckpointError` for a checkpoint that is damaged.
    """
    step = checkpoint.verify(donor)
    manifest = json.loads((donor / checkpoint.MANIFEST).read_bytes())
    new_digest = hashlib.sha256(
        f"{digest} from {sha256(donor / checkpoint.MANIFEST)}".encode()
    ).hexdigest()
    content = {name: (donor / name).read_bytes() for name in manifest["files"]}
    checkpoint.save(home / new_digest[:16], step, content, LocalComm(), digest=new_digest, keep=2)
    note = {
        "values": values,
        "digest": new_digest,
        "inherited": step,
        "from": {"digest": manifest["digest"], "step": step},
    }
    write_json(home / _NOTE, note)
    return note


class ScoringReporter(cluster.RayReporter):
    """A reporter of training that scores each checkpoint on rank 0 before training continues."""

    def __init__(self, *arguments: Any, scorer: Scorer) -> None:
        super().__init__(*arguments)
        self.scorer = scorer

    def started(self, step: int, history: list[Row], rollbacks: int, reason: str) -> None:
        super().started(step, history, rollbacks, reason)
        self._score()  # the last attempt may have ended between a checkpoint and its score

    def saved(self, row: Row) -> None:
        self._score()
        super().saved(row)

    def _score(self) -> None:
        from ray.train.collective import barrier

        if self.rank == 0:
            self.scorer.score_newest(self.run)
        barrier()  # Ray's, because a barrier of training would run into cluster.timeout_s
