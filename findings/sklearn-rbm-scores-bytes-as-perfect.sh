#!/usr/bin/env bash
# scikit-learn 1.9.1: BernoulliRBM fits pixels of 0..255 and scores them 0, the best there can be.
#
# The same patterns as 0/1 have a pseudo-likelihood of about -10 nats each. As 0/255 they are
# accepted without a word (the class asks for values in [0, 1] and does not check), and
# score_samples gives -0.0 for some rows and -10^5 for others, because the flipped pixel 1 - 255 is
# so improbable to the model; shifted by -5, all rows score -0.0. A search over settings that
# maximises the score then prefers unscaled data. Guess before the run: ValueError, or scores far
# below those of 0/1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from sklearn.neural_network import BernoulliRBM

patterns = (np.random.default_rng(0).random((300, 16)) < 0.3).astype(float)


def scores(x):
    return BernoulliRBM(n_components=8, n_iter=5, random_state=0).fit(x).score_samples(x)


binary, bytes_, shifted = scores(patterns), scores(255 * patterns), scores(patterns - 5)
print("0/1: mean", binary.mean().round(2), "best", binary.max().round(2))
print("0/255: share that scores exactly 0:", (bytes_ == 0).mean().round(2), "worst", bytes_.min().round())
print("minus 5: share that scores exactly 0:", (shifted == 0).mean())
assert -15 < binary.mean() < -5 and binary.max() < -0.1
assert (bytes_ == 0).mean() > 0.2
assert (shifted == 0).all()

PYTHON
