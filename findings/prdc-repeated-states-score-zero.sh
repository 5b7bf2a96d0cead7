#!/usr/bin/env bash
# prdc 0.2 (the authors' package of density and coverage): where states repeat, as in binary data, a
# perfect model scores 0 of 1.
#
# A sample counts when its distance to a real one is *smaller than* the distance to that one's k-th
# neighbour. Of 1,000 real samples of 6 bits each state has some 16 copies, so every radius is 0,
# nothing is smaller, and precision, recall, density and coverage are all 0 for samples of the same
# distribution. With 16 bits distances tie, and its density is .43. Noise of 1e-6 on both sets gives
# about 1 again. No warning is given.
# One expects: samples of the same distribution score about 1, and the k-th neighbour is in the ball.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check prdc==0.2 numpy==2.4.6 \
  scipy==1.17.1 scikit-learn==1.8.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'

import contextlib
import io

import numpy as np
from prdc import compute_prdc

random = np.random.default_rng(0)


def metrics(real, fake):
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of samples
        return {name: round(float(v), 3) for name, v in compute_prdc(real, fake, 5).items()}


def jittered(x):
    return x + 1e-6 * random.standard_normal(x.shape)


for bits in (6, 16):
    real, fake = random.integers(0, 2, (2, 1000, bits)).astype(float)
    same, with_noise = metrics(real, fake), metrics(jittered(real), jittered(fake))
    print(f"{bits} bits, plain:         {same}")
    print(f"{bits} bits, noise of 1e-6: {with_noise}")
    assert min(with_noise.values()) > 0.9
    if bits == 6:
        assert set(same.values()) == {0.0}
    else:
        assert same["density"] < 0.5

PYTHON
