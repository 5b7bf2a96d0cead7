"""The public names: documented, typed, and imported on first use."""

import ast
import importlib.resources
import inspect
import subprocess
import sys

import pytest

import ebm_dist as ebm

SLOW = ("torch", "numpy", "scipy", "sklearn", "mlflow", "ray", "pydantic", "matplotlib", "arviz")


def modules_after(script: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {script}; print(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_import_loads_no_library():
    assert modules_after("import ebm_dist; dir(ebm_dist)").isdisjoint(SLOW)


@pytest.mark.slow
def test_sampling_loads_no_platform():
    assert modules_after("import ebm_dist; ebm_dist.sample").isdisjoint(
        {"sklearn", "mlflow", "ray", "matplotlib", "arviz"}
    )


@pytest.mark.parametrize("name", ebm.__all__)
def test_every_name_is_there_and_documented(name):
    assert name in dir(ebm)
    value = getattr(ebm, name)
    assert inspect.getdoc(value) and value.__module__.startswith("ebm_dist.api.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        ebm.smaple  # noqa: B018


def test_the_types_are_shipped():
    package = importlib.resources.files("ebm_dist")
    assert package.joinpath("py.typed").is_file()
    stub = ast.parse(package.joinpath("__init__.pyi").read_text())
    typed = [
        alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(typed) == sorted(ebm.__all__)
