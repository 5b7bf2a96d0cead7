#!/usr/bin/env bash
# normflows 1.7.3, torch 2.13.0: GaussianPCA, fitted to data of variance 4, has the variance 2.
#
# Maximum likelihood in one dimension, 5,000 normal draws: variances .25, 1 and 4 become .5, 1 and
# 2, which are the standard deviations of the data. exp(log_prob) integrates to 14.3 in two
# dimensions with Sigma = ((1.25, .5), (.5, 2.75)), where a density has 1. The code takes half the
# determinant of Sigma where half its logarithm is meant, and adds dim/2 log 2 pi where it should
# take it off; in forward and in log_prob alike, so the two agree. And the draws of forward lack
# the noise sigma that the density has: their covariance is that of the other part, ((1, .5), (.5,
# 2.5)). Data of variance 1 hides the first. DiagGaussian and GaussianMixture of the same library
# integrate to 1. Guess before the run: all distributions of the library do.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  normflows==1.7.3 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import torch
from normflows.distributions import DiagGaussian, GaussianMixture, GaussianPCA

torch.manual_seed(0)
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
line = torch.linspace(-12, 12, 601)
plane, cell = torch.cartesian_prod(line, line), (line[1] - line[0]) ** 2

model = GaussianPCA(2, latent_dim=2, sigma=0.5).double()
with torch.no_grad():
    model.W.copy_(torch.tensor([[1.0, 0.5], [0.0, 1.5]]))
    part = model.W.T @ model.W
    sigma = part + 0.25 * torch.eye(2)
    others = {
        "the exact normal": torch.distributions.MultivariateNormal(torch.zeros(2), sigma),
        "DiagGaussian": DiagGaussian(2).double(),
        "GaussianMixture": GaussianMixture(2, 2, loc=[[0, 1], [2, 0]], scale=[[1, 2], [0.5, 1]]),
    }
    mass = {name: float((kind.log_prob(plane).exp() * cell).sum()) for name, kind in others.items()}
    mass["GaussianPCA"] = float((model.log_prob(plane).exp() * cell).sum())
    off = model.log_prob(plane) - others["the exact normal"].log_prob(plane)
    wanted = 2 * torch.log(torch.tensor(2 * torch.pi)) - (sigma.det() - sigma.logdet()) / 2
    draws, _ = model(400_000)
    covariance = torch.cov(draws.T)
print("integral of exp(log_prob):", {name: round(value, 3) for name, value in mass.items()})
print(f"nats above the exact density, at every point: {float(off.mean()):.4f}")
print("covariance in the density", sigma.tolist(), "of the draws", covariance.numpy().round(3))
assert abs(mass.pop("GaussianPCA") - 14.32) < 0.05
assert all(abs(value - 1) < 1e-3 for value in mass.values())
assert (off - wanted).abs().max() < 1e-9
assert (covariance - part).abs().max() < 0.02 and abs(covariance[0, 0] - sigma[0, 0]) > 0.2

for variance in (0.25, 1.0, 4.0):
    data = torch.randn(5000, 1) * variance**0.5
    model = GaussianPCA(1, latent_dim=1, sigma=0.1).double()
    steps = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        steps.zero_grad()
        value = -model.log_prob(data).mean()
        value.backward()
        return value

    steps.step(loss)
    with torch.no_grad():
        fitted = float((model.W.T @ model.W + torch.exp(2 * model.log_sigma)).item())
    seen = float(data.var())
    print(f"variance of the data {seen:.3f}, fitted {fitted:.3f}")
    assert abs(fitted / seen**0.5 - 1) < 0.03 and abs(seen / variance - 1) < 0.1

PYTHON
