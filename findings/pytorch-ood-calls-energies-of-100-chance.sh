#!/usr/bin/env bash
# pytorch-ood 0.2.0, torchmetrics 1.9.0: outlier scores around 100 have an AUROC of .5, whatever they say.
#
# 900 inliers and 100 outliers, six standard deviations apart. As scores around 0, AUROC is .99998. The
# same scores times 10 plus 100, as energies in nats are: AUROC .5, FPR95 1.0, as of chance; minus 100,
# .99998 again, and AUPR-IN that of chance. The library hands scores to torchmetrics, which takes
# values outside [0, 1] for logits and puts them through a sigmoid: in float32 all above 17 become 1 and
# tie (float64 lasts to 37). Ties are then paid as a gift: a constant score has AUPR-OUT .55 where a
# tenth are outliers, a trapezoid from precision .1 to 1; its average precision is .1. And
# void_label=0 drops nothing, because 0 is taken for "no label". Guess before the run: AUROC depends
# on the order of the scores alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pytorch-ood==0.2.0 torchmetrics==1.9.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from pytorch_ood.utils import OODMetrics


def judged(scores, labels, **options):
    metrics = OODMetrics(**options)
    metrics.update(scores, labels)
    return {name: round(value, 5) for name, value in metrics.compute().items()}


torch.manual_seed(0)
labels = torch.tensor([0] * 900 + [-1] * 100)
scores = torch.cat([torch.randn(900), torch.randn(100) + 6])
near, high, low = (judged(s, labels) for s in (scores, 10 * scores + 100, 10 * scores - 100))
double = judged((scores + 30).double(), labels)
constant = judged(torch.ones(1000), labels)
print("around 0    ", near)
print("around 100  ", high)
print("around -100 ", low)
print("around 30, float64", double)
print("constant    ", constant)
assert near["AUROC"] > 0.9999 and high["AUROC"] == 0.5 and high["FPR95TPR"] == 1.0
assert low["AUROC"] > 0.9999 and low["AUPR-IN"] == 0.95 and double["AUROC"] > 0.9999
assert constant["AUROC"] == 0.5 and constant["AUPR-OUT"] == 0.55 and constant["AUPR-IN"] == 0.95

few = torch.tensor([9.0, 1.0, 2.0, 8.0])
kept = judged(few, torch.tensor([0, 1, 1, -1]), void_label=0)
dropped = judged(few, torch.tensor([5, 1, 1, -1]), void_label=5)
print("a void row with the highest score, AUROC: label 0", kept["AUROC"], "label 5", dropped["AUROC"])
assert kept["AUROC"] < 0.7 and dropped["AUROC"] == 1.0
PYTHON
