#!/usr/bin/env bash
# arviz-stats 0.8.0 and blackjax 1.7.1: a sampler that never moves has ESS 4,000 in one, 0 in the other.
#
# Four chains of 1,000 draws, all the same constant: arviz-stats gives an effective sample size of
# 4,000 (the best there can be) beside an R-hat of NaN; blackjax gives 0 and NaN. And blackjax gives
# 0 too for independent draws in small units (sd 1e-20, where float32 squares underflow), while
# arviz-stats does not depend on the unit. A threshold such as ESS > 400 passes a stuck sampler or
# refuses a perfect one. One expects: NaN for constants in both, no dependence on units.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check arviz-stats==0.8.0 blackjax==1.7.1 jax==0.10.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from arviz_stats.base import array_stats
from blackjax.diagnostics import effective_sample_size, potential_scale_reduction

stuck = np.ones((4, 1000))
independent = np.random.default_rng(0).normal(size=(4, 1000)).astype(np.float32)
axes = {"chain_axis": 0, "draw_axis": 1}
arviz_stuck = float(array_stats.ess(stuck, **axes)), float(array_stats.rhat(stuck, **axes))
blackjax_stuck = (
    float(effective_sample_size(stuck)),
    float(potential_scale_reduction(stuck)),
)
units = {
    unit: (
        round(float(array_stats.ess(independent.astype(float) * unit, **axes))),
        round(float(effective_sample_size(independent * np.float32(unit)))),
    )
    for unit in (1.0, 1e-20)
}
print("stuck chains, ESS and R-hat: arviz-stats", arviz_stuck, "blackjax", blackjax_stuck)
print("independent draws, ESS by unit (arviz-stats, blackjax):", units)
assert arviz_stuck[0] == 4000 and np.isnan(arviz_stuck[1])
assert blackjax_stuck[0] == 0 and np.isnan(blackjax_stuck[1])
assert units[1.0][0] == units[1e-20][0] > 3000
assert units[1.0][1] > 3000 and units[1e-20][1] == 0

PYTHON
