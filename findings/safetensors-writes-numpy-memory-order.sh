#!/usr/bin/env bash
# safetensors 0.8.0: arrays of NumPy that are strided or in Fortran's order come back as other values.
#
# save and save_file take the memory behind the array as it lies and write the shape beside it: every
# second entry of 0..5 comes back as 0, 1, 2; a transposed matrix with its entries in another place; the
# components of scikit-learn's PCA, which are in Fortran's order, shuffled. Nothing is said, by the writer
# or the reader; 0.7.0 has the right values. The documentation asks for arrays
# that are "contiguous and dense", which a transposed matrix is. Big-endian arrays come back right, and
# safetensors.torch refuses such tensors by name. Known to the project (its issue 825). Guess before the
# run, which was to try big-endian arrays: refused, or right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip safetensors==0.8.0 numpy==2.4.6 scikit-learn==1.9.1
cat > "$folder/try.py" <<'PYTHON'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save
from sklearn.decomposition import PCA

wanted = sys.argv[1] == "right"
rows = np.random.default_rng(0).normal(size=(50, 4))
arrays = {
    "every second": np.arange(6.0)[::2],
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "components of PCA": PCA(2).fit(rows).components_,
    "big-endian": np.arange(3, dtype=">f4"),
}
print(safetensors.__version__)
for name, array in arrays.items():
    back = load(save({"a": array}))["a"]
    print(f"{name}: {array.ravel()[:6].round(2)} comes back as {back.ravel()[:6].round(2)}")
    assert back.shape == array.shape
    assert np.array_equal(back, array) == (wanted or name == "big-endian")
PYTHON
"$folder/venv/bin/python" "$folder/try.py" wrong
pip safetensors==0.7.0
"$folder/venv/bin/python" "$folder/try.py" right
