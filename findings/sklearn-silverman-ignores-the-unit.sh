#!/usr/bin/env bash
# scikit-learn 1.9.1 and scipy 1.17.1: "silverman" is a width in one, and a multiple of the deviation in
# the other.
#
# 500 standard normal draws, in units of 1, 1,000 and 0.001. KernelDensity(bandwidth="silverman") takes
# the same width .306 for all three: the mean log density, with the unit taken out, is -1.42, +1.05 and
# -6.64, where the entropy is -1.42. In units of 1,000 it puts a spike at each sample; in units of .001
# it is flat. gaussian_kde(bw_method="silverman") has -1.42 in each. "scott" does the same. One expects
# that a rule of thumb for the width follows the deviation of the data, as Silverman's does. A held-out
# likelihood that chooses between kernel densities of unscaled columns then chooses by their units.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import numpy as np
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity

x = np.random.default_rng(0).normal(size=(500, 1))
means = []
for unit in (1.0, 1000.0, 0.001):
    data = unit * x
    fitted = KernelDensity(bandwidth="silverman").fit(data)
    ours = fitted.score_samples(data).mean() + np.log(unit)
    theirs = np.log(gaussian_kde(data.T, bw_method="silverman")(data.T)).mean() + np.log(unit)
    means.append((ours, theirs))
    print(f"unit {unit}: width {fitted.bandwidth_:.3f}; sklearn {ours:.2f}, scipy {theirs:.2f}")
sklearn, scipy = np.array(means).T
assert np.abs(scipy + 1.42).max() < 0.01
assert np.abs(sklearn - [-1.42, 1.05, -6.64]).max() < 0.01

PYTHON
