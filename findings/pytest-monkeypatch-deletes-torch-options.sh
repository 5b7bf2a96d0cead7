#!/usr/bin/env bash
# pytest 9.2.0 with torch 2.13.0: a test that sets an option of torch with monkeypatch.setattr passes,
# and from its end the option does not exist.
#
# torch's config modules answer attributes from a table of their own, and their "del" hides the entry.
# monkeypatch looks for the old value in the module's __dict__, finds none, and so "restores" by
# deleting: later reads of the option raise AttributeError, in torch itself and in another test
# than the one at fault. pytest 9.0.2 restores the value.
# The context manager torch._dynamo.config.patch(...) restores with both.
# One expects: monkeypatch puts back what getattr gave before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6

cat > "$folder/test_options.py" <<'PYTHON'
import torch._dynamo.config as options


def test_that_sets(monkeypatch):
    monkeypatch.setattr(options, "recompile_limit", 2)
    assert options.recompile_limit == 2


def test_that_reads():
    print("recompile_limit is", getattr(options, "recompile_limit", "gone"))


def test_with_the_context_manager():
    before = options.error_on_recompile
    with options.patch(error_on_recompile=not before):
        pass
    assert options.error_on_recompile is before
PYTHON

for version in 9.0.2 9.2.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytest==$version"
  (cd "$folder" && venv/bin/python -m pytest -q -s -p no:cacheprovider test_options.py) > "$folder/$version"
  grep -q "3 passed" "$folder/$version"
  echo "pytest $version: $(grep -o 'recompile_limit is .*' "$folder/$version")"
done
grep -q "recompile_limit is 8" "$folder/9.0.2"
grep -q "recompile_limit is gone" "$folder/9.2.0"
