#!/usr/bin/env bash
# torch 2.13.0, CPU: uniform draws in bfloat16 are 0 once in 512, since 1 is replaced by 0.
#
# Draws are rounded to the nearest bfloat16 value, and those above 1 - 2^-9, which round to 1, come
# back as 0 (values as small as 10^-7 occur as well, so a grid does not explain the zeros). The mean
# of 5 x 10^7 draws is .4981, 47 standard errors below .5. In float16 it is once in 4,096. As u of a
# Metropolis test (log u < log ratio) a zero accepts any proposal. torch.rand and Tensor.uniform_
# do the same. Guess before the run: rounded down, mean about .499, zeros once in 10^5 or less.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch

count = 50_000_000
for dtype, one_in in ((torch.bfloat16, 512), (torch.float16, 4096)):
    generator = torch.Generator().manual_seed(0)
    drawn = {
        "rand": torch.rand(count, dtype=dtype, generator=generator),
        "uniform_": torch.empty(count, dtype=dtype).uniform_(0, 1, generator=generator),
    }
    for name, uniform in drawn.items():
        zeros, mean = int((uniform == 0).sum()), float(uniform.double().mean())
        smallest, largest = float(uniform[uniform > 0].min()), float(uniform.max())
        print(f"{dtype} {name}: zero once in {count / zeros:.0f}, mean {mean:.4f},", end=" ")
        print(f"other values from {smallest:.1e} to {largest:.5f}")
        assert 0.95 < count / zeros / one_in < 1.05
        assert smallest < 1e-6 and largest < 1
        assert abs(mean - (0.5 - 1 / one_in)) < 2e-4
PYTHON
