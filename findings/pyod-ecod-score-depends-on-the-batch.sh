#!/usr/bin/env bash
# PyOD 3.6.7: ECOD and COPOD score a row by the other rows of the same call.
#
# Fitted on 500 normal points, contamination .1. The point (6, 6, 6) is an outlier when it is scored
# alone (18.65; thresholds 7.44 and 5.77) and an inlier when 100 copies of it are scored together
# (5.375). With COPOD the point (0, 0, 0) is an inlier alone (2.14) and an outlier in one call with
# 2,000 such points (6.83). Guess before the run: a fitted detector scores each row by itself, as
# PCA, HBOS, GMM and KDE of the same library do. So a benchmark that scores the test set in one
# call and a service that scores rows as they come give different AUROC for the same detector.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyod==3.6.7 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from pyod.models.copod import COPOD
from pyod.models.ecod import ECOD

inliers = np.random.default_rng(0).normal(size=(500, 3))
outlier, centre = np.full((1, 3), 6.0), np.zeros((1, 3))
for detector in (ECOD(contamination=0.1), COPOD(contamination=0.1)):
    detector.fit(inliers)
    name, threshold = type(detector).__name__, round(float(detector.threshold_), 2)
    scores = {
        copies: round(float(detector.decision_function(np.repeat(outlier, copies, axis=0))[0]), 3)
        for copies in (1, 10, 100, 2000)
    }
    alone = detector.decision_function(centre)[0]
    together = detector.decision_function(np.vstack([centre, np.repeat(outlier, 2000, axis=0)]))[0]
    print(name, "threshold", threshold, "score of the outlier by copies in the call", scores)
    print(name, "score of the centre alone and with 2,000 outliers", alone.round(2), together.round(2))
    assert scores[1] > threshold > scores[100] > scores[2000]
    assert alone < threshold
    assert (together > threshold) == (name == "COPOD")

PYTHON
