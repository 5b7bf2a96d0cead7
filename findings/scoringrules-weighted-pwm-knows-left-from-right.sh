#!/usr/bin/env bash
# scoringrules 0.10.0: with weights, the CRPS by "pwm" is another one when all signs are changed.
#
# Members 0, 1, 2 with weights 2, 1, 1, observation .4: -.10 by estimator="pwm"; of the mirror
# image, 0, -1, -2 and -.4, it is +.20. A CRPS has no such side: by "fair" both are .05, by "nrg",
# "int" and "qd" .3125. Without weights "pwm" and "fair" are the same number. As an average over
# 20,000 forecasts of 20 draws of N(0, 1), weighted to N(1, 1), with observations from N(1, 1),
# which has a CRPS of .564: "fair" .58, "pwm" .66; weighted to N(-1, 1), which is the mirror image,
# "pwm" .50. So the same forecast is scored a third apart, and one side better than the truth
# itself could be. Weights that do not depend on the value hide it. Guess before the run: equal to
# "fair" with weights too, or at least the same for the mirror image.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scoringrules==0.10.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from scoringrules import crps_ensemble

members, weights, seen = np.array([0.0, 1, 2]), np.array([2.0, 1, 1]), 0.4
share = weights / weights.sum()
apart = share @ np.abs(members[:, None] - members) @ share / 2
wanted = {"nrg": share @ np.abs(members - seen) - apart}
wanted["fair"] = share @ np.abs(members - seen) - apart / (1 - share @ share)
wanted["int"] = wanted["qd"] = wanted["nrg"]

rng = np.random.default_rng(0)
draws, noise = rng.normal(size=(20_000, 20)), rng.normal(size=20_000)
average = {}
for name in ("nrg", "int", "qd", "fair", "pwm"):
    plain = float(crps_ensemble(seen, members, estimator=name))
    right = float(crps_ensemble(seen, members, ens_w=weights, estimator=name))
    left = float(crps_ensemble(-seen, -members, ens_w=weights, estimator=name))
    average[name] = [
        float(crps_ensemble(noise + to, draws, ens_w=np.exp(to * draws), estimator=name).mean())
        for to in (1, -1)
    ]
    print(f"{name}: no weights {plain:.4f}; weights {right:.4f}, mirror image {left:.4f};", end=" ")
    print(f"averages, to N(1, 1) {average[name][0]:.3f}, to N(-1, 1) {average[name][1]:.3f}")
    if name == "pwm":
        assert abs(plain - 0.2) < 1e-9 and abs(right + 0.1) < 1e-9 and abs(left - 0.2) < 1e-9
    else:
        assert abs(right - wanted[name]) < 1e-9 and abs(left - wanted[name]) < 1e-9
exact = 1 / np.sqrt(np.pi)  # E|X - Y| / 2 of two independent N(0, 1)
print(f"CRPS of the true forecast: {exact:.3f}")
assert all(abs(value - exact) < 0.035 for value in average["fair"])
assert abs(average["fair"][0] - average["fair"][1]) < 0.02
assert average["pwm"][0] > exact + 0.07 and average["pwm"][1] < exact - 0.04

PYTHON
