"""The registered model as MLflow loads it: a model from code, with safetensors and no pickle.

MLflow runs this file when a version is loaded. It passes arrays in and returns the answers of
:mod:`ebm_dist.models.requests`. The limit of the work of a request is that module's ``MAX_WORK``,
or ``max_work`` of the ``model_config`` with which the model is loaded.

A version has a copy of the package in ``code/`` and answers with it. MLflow puts it on the path of
modules, but Python keeps a package that the process has loaded before, such as that of another
version. :func:`_package` then imports the copy under a name of its own.
"""

import ast
import hashlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import mlflow

PACKAGE = "ebm_dist"


class _Renaming(ast.NodeTransformer):
    """Replaces the name of the package in imports, and in texts that name modules."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _renamed(self, text: str) -> str:
        first, dot, rest = text.partition(".")
        return f"{self.name}{dot}{rest}" if first == PACKAGE else text

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name == PACKAGE:
                alias.asname = alias.asname or PACKAGE
            alias.name = self._renamed(alias.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        node.module = node.module and self._renamed(node.module)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            node.value = self._renamed(node.value)
        return node


class _Loader(SourceFileLoader):
    """Compiles renamed modules; it writes no bytecode, which would have the new name in it."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Renaming(fullname.partition(".")[0]).visit(ast.parse(self.get_data(self.path)))
        code: CodeType = self.source_to_code(ast.fix_missing_locations(tree), self.path)
        return code


class _Finder(MetaPathFinder):
    """Finds the modules of a copy of the package by the name that the copy has."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        first, *inner = fullname.split(".")
        if first != self.name:
            return None
        module = self.folder.joinpath(*inner)
        is_package = module.is_dir()
        file = str(module / "__init__.py" if is_package else module.with_suffix(".py"))
        return spec_from_file_location(
            fullname,
            file,
            loader=_Loader(fullname, file),
            submodule_search_locations=[str(module)] if is_package else None,
        )


def _package() -> str:
    """Return the name by which the version's copy of the package is imported."""
    code = Path(__file__).resolve().parent / "code" / PACKAGE
    if not code.is_dir():  # not loaded from a version
        return PACKAGE
    if Path(import_module(PACKAGE).__file__ or "").resolve().parent == code:
        return PACKAGE
    content = hashlib.sha256()
    for file in sorted(code.rglob("*.py")):
        content.update(file.relative_to(code).as_posix().encode() + file.read_bytes())
    name = f"{PACKAGE}_{content.hexdigest()[:16]}"
    if name not in sys.modules:
        sys.meta_path.insert(0, _Finder(name, code))  # before that of unchanged sources
    return name


_NAME = _package()
models = import_module(f"{_NAME}.models")
requests = import_module(f"{_NAME}.models.requests")
errors = import_module(f"{_NAME}.errors")

# MLflow's server has so many threads for requests; half of them are left for small ones.
_NUM_THREADS = min(32, (os.cpu_count() or 1) + 4)


class _Predict:
    """The methods of the service.

    They are not in the class that MLflow inspects, because MLflow would derive a schema from the
    type hints of ``predict`` and ignore the signature.
    """

    model: Any
    limits: Any

    def load_context(self, context: Any) -> None:
        self.model = models.load(Path(context.artifacts["model"]))
        max_work = (context.model_config or {}).get("max_work", requests.MAX_WORK)
        self.limits = requests.Limits(max_work, _NUM_THREADS // 2)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        try:
            return requests.answer(self.model, model_input, params, self.limits)
        except errors.BusyError as busy:
            raise mlflow.exceptions.MlflowException(
                str(busy), mlflow.protos.databricks_pb2.REQUEST_LIMIT_EXCEEDED
            ) from None
        except errors.RequestError as refused:
            raise mlflow.exceptions.MlflowException.invalid_parameter_value(str(refused)) from None


class EnergyService(_Predict, mlflow.pyfunc.PythonModel):  # type: ignore[name-defined,misc]
    """Compute energies ``(n,)`` of float32 samples ``(n, *shape)``; low = likely.

    Other tasks are chosen by params.
    """


mlflow.models.set_model(EnergyService())
