#!/usr/bin/env bash
# dimod 0.12.23: a binary model gives an energy to spins, and shows another state beside it.
#
# E(a, b) = a + 2 a b for a, b in {0, 1}. The state a = -1, b = 1, as a sampler of spins has it, gets
# the energy -3, below the minimum of 0; a = 0.5 gets 1.5, and a variable that the model does not know
# is ignored. A SampleSet made from the state prints it as a = 0, b = 1 with the energy -3, though that
# state has the energy 0. So the least energy of a search can belong to no state. One expects a
# ValueError, since the model has the vartype BINARY, or the conversion of -1 to 0 before the energy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check dimod==0.12.23 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'

import dimod

model = dimod.BinaryQuadraticModel({"a": 1.0, "b": 0.0}, {("a", "b"): 2.0}, 0.0, "BINARY")
least = dimod.ExactSolver().sample(model).first.energy
of_spins = model.energy({"a": -1, "b": 1})
of_halves = model.energy({"a": 0.5, "b": 1})
of_more = model.energy({"a": 1, "b": 1, "c": 9})
shown = dimod.SampleSet.from_samples_bqm([{"a": -1, "b": 1}], model)
row = str(shown).splitlines()[1].split()
print("least energy", least, " of spins", of_spins, " of halves", of_halves, " with an unknown", of_more)
print(shown)
assert least == 0.0
assert (of_spins, of_halves, of_more) == (-3.0, 1.5, 3.0)
assert row[1:4] == ["0", "1", "-3.0"]
assert model.energy({"a": 0, "b": 1}) == 0.0

PYTHON
