#!/usr/bin/env bash
# PyOD 3.6.7: predict(X) of KNN and LOF flags fewer rows of the training set than labels_.
#
# Fitted on 500 normal points with contamination .1: labels_ has 50 outliers, predict of the same
# 500 points 39 (KNN) and 45 (LOF). fit leaves each point out of its own neighbours;
# decision_function does not know that the rows are those of the training set and counts each point
# as its own nearest neighbour, against the threshold of the other scores. PCA and HBOS flag 50.
# One expects: 50 by all, since threshold_ is the 90 % quantile of these very rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyod==3.6.7 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from pyod.models.hbos import HBOS
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.pca import PCA

points = np.random.default_rng(0).normal(size=(500, 3))
flagged = {}
for make in (KNN, LOF, PCA, HBOS):
    detector = make(contamination=0.1)
    detector.fit(points)
    flagged[make.__name__] = int(detector.labels_.sum()), int(detector.predict(points).sum())
print("flagged by labels_ and by predict:", flagged)
assert flagged == {"KNN": (50, 39), "LOF": (50, 45), "PCA": (50, 50), "HBOS": (50, 50)}

PYTHON
