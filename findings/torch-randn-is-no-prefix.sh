#!/usr/bin/env bash
# torch 2.13.0, CPU: with one seed, randn(17) and randn(16) share one value.
#
# randn(16) is the beginning of randn(32), as one expects of a stream. But a count that is no
# multiple of 16 redraws its last 16 values, so 1 of the first 16 values of randn(17) is that of
# randn(16), and randn(15) takes another path (15 of 15 differ). So the noise of the first chain of
# a sampler changes when one more chain is added, unless each chain has its own generator.
# One expects: the first n values do not depend on how many are drawn.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import torch


def draw(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


shared = {
    (few, many): int((draw(few) == draw(many)[:few]).sum())
    for few, many in ((16, 32), (32, 64), (16, 17), (15, 16), (17, 32), (20, 32))
}
print("values shared with the beginning of the longer draw:", shared)
assert shared[16, 32] == 16 and shared[32, 64] == 32
assert shared[16, 17] == 1 and shared[15, 16] == 0
assert shared[17, 32] == 1 and shared[20, 32] == 4

PYTHON
