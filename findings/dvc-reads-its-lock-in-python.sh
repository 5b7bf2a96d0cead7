#!/usr/bin/env bash
# dvc 3.67.1 with ruamel.yaml 0.19.1: each command parses dvc.lock in pure Python, unless one installs
# a package that neither of them requires.
#
# DVC reads lock files by YAML(typ="safe"), the fast loader of ruamel.yaml. Up to 0.18 ruamel.yaml
# required its C parser (ruamel.yaml.clib) on CPython; from 0.19 on it is an extra, and without it the
# same call takes the Python parser, without a word. A lock file of 2,000 stages then takes several
# times as long, in `dvc status` and in every other command. One expects: `pip install dvc` brings the
# parser that its loader is named for, or a warning. After `pip install ruamel.yaml.clib` it is used.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@"; }
pip dvc==3.67.1 ruamel.yaml==0.19.1
cat > "$folder/read.py" <<'PYTHON'
import importlib.metadata
import sys
import time

from dvc.utils.serialize import parse_yaml
from ruamel.yaml import YAML

required = [line for line in importlib.metadata.requires("ruamel.yaml") or [] if "extra" not in line]
stages = "".join(
    f"  s{i}:\n    cmd: python run.py {i}\n    outs:\n    - path: out/{i}\n      hash: md5\n"
    f"      md5: {i:032x}\n      size: {i}\n"
    for i in range(2000)
)
began = time.process_time()
content = parse_yaml(f"schema: '2.0'\nstages:\n{stages}", "dvc.lock")
seconds = time.process_time() - began
assert len(content["stages"]) == 2000
parser = YAML(typ="safe").Parser
print(f"required by ruamel.yaml: {required}; parser: {parser.__module__}.{parser.__name__}; {seconds:.2f} s")
open(sys.argv[1], "w").write(f"{parser.__name__} {seconds}\n")
PYTHON
"$folder/venv/bin/python" "$folder/read.py" "$folder/before"
pip ruamel.yaml.clib==0.2.15
"$folder/venv/bin/python" "$folder/read.py" "$folder/after"
read -r parser slow < "$folder/before"
read -r with_clib fast < "$folder/after"
[[ $parser != CParser && $with_clib == CParser ]]
"$folder/venv/bin/python" -c "import sys; slow, fast = map(float, sys.argv[1:]); print(f'{slow / fast:.1f} times'); assert slow > 2 * fast" "$slow" "$fast"
