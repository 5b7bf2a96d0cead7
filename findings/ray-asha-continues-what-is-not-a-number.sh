#!/usr/bin/env bash
# Ray 2.60.0: ASHA stops all but the best trial, and lets one with a loss of NaN go on.
#
# Ten trials report at the first rung, one in three may go on. Of the losses 0 to 8 only 0 goes on; the
# one that reports NaN goes on too, whether it reports first or last, and at the next rung again. The
# rung compares "loss below the cutoff", which is false for NaN, and leaves NaN out of the cutoff. So a
# search over learning rates spends its whole budget on what diverged first, and stops what was second
# best. Guess before the run: stopped at the first rung, as the worst of all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'ray[tune]==2.60.0' numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler

NAN = float("nan")


def decisions(losses):
    """Let trials report at two rungs; return the losses of those that may go on after each."""
    scheduler = AsyncHyperBandScheduler(
        time_attr="step", metric="loss", mode="min", max_t=9, grace_period=1, reduction_factor=3
    )
    trials = [Trial("training", stub=True) for _ in losses]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    rungs = []
    for step in (1, 3):
        found = [
            scheduler.on_trial_result(None, trial, {"step": step, "loss": loss})
            for trial, loss in zip(trials, losses, strict=True)
        ]
        rungs.append([str(x) for x, d in zip(losses, found, strict=True) if d == "CONTINUE"])
        pairs = [(t, x) for t, x, d in zip(trials, losses, found, strict=True) if d == "CONTINUE"]
        trials, losses = map(list, zip(*pairs, strict=True))
    return rungs


numbers = [float(i) for i in range(9)]
first, last = decisions([NAN, *numbers]), decisions([*numbers, NAN])
print("NaN reports first: go on after each rung", first)
print("NaN reports last:  go on after each rung", last)
assert first == [["nan", "0.0"], ["nan", "0.0"]]
assert last == [["0.0", "nan"], ["0.0", "nan"]]

PYTHON
