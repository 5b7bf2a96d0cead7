#!/usr/bin/env bash
# hopsy 1.7.0: BilliardAdaptiveMetropolisProposal is far from uniform, with R-hat 1.000 and all
# accepted.
#
# The uniform distribution on x, y >= 0, x + y <= 1, four chains of 20,000 draws. The means are .38,
# not 1/3, the variances .069, not .0556, and 66 % of the draws are in the outer half of the area.
# On the parallelogram |x| <= 1, |x + y| <= 1 the variance of y is 1.13, not .667. R-hat is 1.000,
# the ESS 59,000 of 80,000, and each proposal is accepted; the three right samplers have an ESS of
# 30,000 to 79,000. A step is reflected at the walls as light is, and all are accepted. With an
# adapted covariance the mirrored step is not as probable backwards, which is probably the cause: on a
# box, even a turned one, the error vanishes, so a test there passes. The docstring warns of the MALA
# with reflections, not of this one. Guess before the run: all proposals of hopsy are uniform.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hopsy==1.7.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import hopsy
import numpy as np


def draw(proposal, walls, bounds):
    problem = hopsy.Problem(np.array(walls, dtype=float), np.array(bounds, dtype=float))
    chains = [
        hopsy.MarkovChain(problem, proposal=proposal, starting_point=np.full(2, 0.25))
        for _ in range(4)
    ]
    seeds = [hopsy.RandomNumberGenerator(1, chain) for chain in range(4)]
    accepted, draws = hopsy.sample(chains, seeds, n_samples=20_000, thinning=5)
    r_hat, ess = float(hopsy.rhat(draws).max()), float(hopsy.ess(draws).min())
    return draws.reshape(-1, 2), np.mean(accepted), r_hat, ess


triangle = [[-1, 0], [0, -1], [1, 1]], [0, 0, 1]
parallelogram = [[1, 0], [-1, 0], [1, 1], [-1, -1]], [1, 1, 1, 1]
box = [[1, 1], [-1, 1], [-1, -1], [1, -1]], [1, 1, 3, 1]
for name in ("BilliardAdaptiveMetropolis", "AdaptiveMetropolis", "BilliardWalk", "UniformHitAndRun"):
    proposal = getattr(hopsy, f"{name}Proposal")
    draws, accepted, r_hat, ess = draw(proposal, *triangle)
    mean, variance = draws.mean(), draws.var(axis=0).mean()
    outer = (draws.sum(axis=1) > np.sqrt(0.5)).mean()
    wide = draw(proposal, *parallelogram)[0][:, 1].var()
    turned = (draw(proposal, *box)[0] @ [1, 1]).var()
    print(f"{name}: mean {mean:.3f} (1/3), variance {variance:.4f} (.0556), outer half {outer:.3f},", end=" ")
    print(f"R-hat {r_hat:.4f}, ESS {ess:,.0f}, accepted {accepted:.2f};", end=" ")
    print(f"parallelogram {wide:.3f} (.667), box {turned:.3f} (1.333)")
    assert abs(turned - 4 / 3) < 0.05
    if name == "BilliardAdaptiveMetropolis":
        assert mean > 0.37 and variance > 0.066 and outer > 0.64 and wide > 1.05
        assert r_hat < 1.002 and ess > 50_000 and accepted > 0.99
    else:
        assert abs(mean - 1 / 3) < 0.01 and abs(variance - 1 / 18) < 0.002
        assert abs(outer - 0.5) < 0.02 and abs(wide - 2 / 3) < 0.03

PYTHON
