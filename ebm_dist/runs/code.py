"""Digests of code: a result depends on the definitions that it reaches, not on files.

From the roots of a stage, names are followed through the project's own modules. The syntax tree of
each definition reached is hashed without docstrings, comments, type annotations, and the text of
errors and log lines. Names of modules are reduced to the names that they bind. So a docstring, a
comment, another message, a move to another file, and any definition that is not reached leave the
digest as it is. Code that the settings rule out (compiled chains, DDP) is not followed.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ebm_dist.config import Params, modules_of, plugins
from ebm_dist.errors import CodeChangedError

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ebm_dist", "pipelines")
ALL = "*"
"""Stands for every definition of a module."""

_FIELD = "field"
_PLUGINS = ("energies", "samplers", "objectives", "generators")
_LOGGING = ("debug", "info", "warning", "error")
_COMPILED, _DDP = (
    ("ebm_dist.chains.compiled", "CompiledChains"),
    ("ebm_dist.training.reduce", "DDP"),
)
_FIGURES = ("ebm_dist.report.figures", ALL)
_TRANSPORT = [
    ("ebm_dist.storage", ALL),
    ("ebm_dist.faults", ALL),
    ("ebm_dist.errors", ALL),
    ("ebm_dist.runs.lineage", "hardware"),
]
"""What moves bytes and messages, or names the machine, and decides no result."""

Symbol = tuple[str, str]
"""A module and a name in it."""


class _Module(NamedTuple):
    definitions: dict[str, list[ast.stmt]]
    """statements by the names that they bind"""
    effects: list[ast.stmt]
    """statements that bind nothing"""
    imports: dict[str, Symbol]
    """``(module, name)`` by local name; the name is "" for a module"""


@cache
def _module(name: str, root: Path) -> _Module | None:
    path = root.joinpath(*name.split("."))
    file = next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)
    if file is None or name.partition(".")[0] not in PACKAGES:
        return None
    module = _Module({}, [], {})
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports.update(_imports(statement, root))
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        elif bound := _bound(statement):
            for name_ in bound:
                module.definitions.setdefault(name_, []).append(statement)
        elif not _is_text(statement):
            module.effects.append(statement)
    return module


def _imports(statement: ast.Import | ast.ImportFrom, root: Path) -> Iterator[tuple[str, Symbol]]:
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            yield (
                alias.asname or alias.name.partition(".")[0],
                (alias.name if alias.asname else alias.name.partition(".")[0], ""),
            )
        else:
            whole = f"{statement.module}.{alias.name}"
            is_module = _is_own(whole) and _module_exists(whole, root)
            yield (
                alias.asname or alias.name,
                (whole, "") if is_module else (statement.module or "", alias.name),
            )


def _module_exists(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _is_own(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _bound(statement: ast.stmt) -> set[str]:
    """Return the names that a statement of a module binds."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    names = {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return set() if isinstance(statement, ast.Expr) else names


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


class _Canonical(ast.NodeTransformer):
    """Reduce a statement, in place, to its computation; collect the symbols that it refers to."""

    def __init__(self, name: str, module: _Module, root: Path) -> None:
        self.name, self.module, self.root = name, module, root
        self.imports = dict(module.imports)
        self.symbols: set[Symbol] = set()

    def of(self, statement: ast.stmt) -> str:
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports.update(_imports(node, self.root))
        return ast.dump(self.visit(statement), annotate_fields=False)

    def resolve(self, name: str) -> Symbol | None:
        """Return ``(module, name)`` for a name of the module; None for a local or builtin name."""
        if name in self.module.definitions:
            return self.name, name
        return self.imports.get(name)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        call = node.value.func if isinstance(node.value, ast.Call) else None
        is_log = (
            isinstance(call, ast.Attribute)
            and call.attr in _LOGGING
            and "log" in ast.unparse(call.value).lower()
        )
        return None if _is_text(node) or is_log else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = ""
            elif isinstance(part, ast.JoinedStr):
                part.values = []
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for argument in [
            *node.args.posonlyargs,
            *node.args.args,
            *node.args.kwonlyargs,
            node.args.vararg,
            node.args.kwarg,
        ]:
            if argument is not None:
                argument.annotation = None
        return self.with_body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        for statement in node.body:  # a field of a dataclass differs from an attribute
            if isinstance(statement, ast.AnnAssign):
                statement.annotation = ast.Constant(_FIELD)
        return self.with_body(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if getattr(node.annotation, "value", None) == _FIELD:
            return self.generic_visit(node)
        return self.visit(ast.Assign([node.target], node.value)) if node.value else None

    def with_body(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        symbol = self.resolve(node.value.id) if isinstance(node.value, ast.Name) else None
        if symbol and symbol[1] == "" and _is_own(symbol[0]):
            self.symbols.add((symbol[0], node.attr))
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        symbol = self.resolve(node.id)
        if symbol is None:
            return node
        module, name = symbol
        if _is_own(module):
            self.symbols.add((module, name or ALL))
            return ast.Name(name or module.rpartition(".")[2], node.ctx)
        return ast.Name(f"{module}.{name}".rstrip("."), node.ctx)


def closure(
    roots: Iterable[Symbol], skipped: Iterable[Symbol] = (), root: Path = ROOT
) -> dict[Symbol, frozenset[str]]:
    """Return each symbol that the roots reach, roots included, with its canonical definitions.

    ``skipped`` symbols are not followed. Plugins, which are looked up by name at run time, are
    followed only as roots. Raise KeyError for a root that does not exist.
    """
    definitions: dict[Symbol, frozenset[str]] = {}
    for name, wanted in (roots := list(roots)):
        module = _module(name, root)
        if module is None or (wanted != ALL and wanted not in module.definitions):
            raise KeyError(f"{name}.{wanted}: no such root in {root}")
    queue, left_out = list(roots), {*skipped, *_TRANSPORT}
    while queue:
        symbol = queue.pop()
        if symbol in definitions or symbol in left_out or (symbol[0], ALL) in left_out:
            continue
        definitions[symbol], reached = _definition(symbol, root)
        queue += reached
    return definitions


@cache
def _definition(symbol: Symbol, root: Path) -> tuple[frozenset[str], frozenset[Symbol]]:
    """Return the canonical definitions of a symbol, and the symbols that they refer to."""
    name, wanted = symbol
    module = _module(name, root)
    if module is None:
        return frozenset(), frozenset()
    if wanted == ALL:
        everything = {(name, bound) for bound in module.definitions}
        return frozenset(), frozenset(everything | ({(name, "")} if module.effects else set()))
    if wanted in module.imports and wanted not in module.definitions:
        target, target_name = module.imports[wanted]
        return frozenset(), frozenset({(target, target_name or ALL)} if _is_own(target) else set())
    if wanted and wanted not in module.definitions and _module_exists(f"{name}.{wanted}", root):
        return frozenset(), frozenset({(f"{name}.{wanted}", ALL)})
    reduced = [
        _reduced(statement, name, root)
        for statement in [*module.definitions.get(wanted, []), *module.effects]
    ]
    return (
        frozenset(text for text, _ in reduced),
        frozenset(symbol for _, symbols in reduced for symbol in symbols),
    )


@cache
def _reduced(statement: ast.stmt, name: str, root: Path) -> tuple[str, frozenset[Symbol]]:
    """Return a statement's canonical text and symbols. Cached: the statement is changed."""
    module = _module(name, root)
    assert module is not None
    canonical = _Canonical(name, module, root)
    return canonical.of(statement), frozenset(canonical.symbols)


def digest(roots: Iterable[Symbol], skipped: Iterable[Symbol] = (), root: Path = ROOT) -> str:
    """Return the SHA-256 of all definitions that the roots reach."""
    texts = sorted(
        {text for definitions in closure(roots, skipped, root).values() for text in definitions}
    )
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def text_digest(root: Path = ROOT) -> str:
    """Return the SHA-256 of all source files. While it is the same, so is each digest."""
    together = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        together.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return together.hexdigest()


def changed(run: Path) -> CodeChangedError:
    """Return the error for a training that would go on with other code than it began with."""
    return CodeChangedError(
        f"{run}: the code changed while this training went on; its checkpoint is kept",
        "run the same command again to train with the new code from the beginning, or restore the"
        " code first to resume",
    )


def forget() -> None:
    """Forget the source files, so that the next digest is of those on the disk then."""
    for cached in (_module, _definition, _reduced):
        cached.cache_clear()


def _whole(*modules: str) -> list[Symbol]:
    return [(module, ALL) for module in modules]


def _plugins_of(params: Params | None, *sections: str) -> list[Symbol]:
    """Return the plugins that the settings name in these sections, or all plugins if None."""
    if params is None:
        folders = _PLUGINS if "energy" in sections else ("datasets",)
        return _whole(
            *(
                f"ebm_dist.{folder}.{name}"
                for folder in folders
                for name in plugins(f"ebm_dist.{folder}")
            )
        )
    configs = [config for section in sections for config in _configs(getattr(params, section))]
    return _whole(*(module.__name__ for config in configs for module in modules_of(config)))


def _configs(section: object) -> list[object]:
    return list(section.values()) if isinstance(section, dict) else [section]


def _ruled_out(params: Params | None) -> list[Symbol]:
    if params is None:
        return []
    compiled = params.train.compile or params.train.precision != "float32"
    return ([] if compiled else [_COMPILED]) + ([] if params.train.reduce == "ddp" else [_DDP])


def prepare_digest(params: Params | None, root: Path = ROOT) -> str:
    """Return the digest of the code that prepares the data of these settings, or of any if None."""
    return digest(
        [("ebm_dist.data.shards", "write"), *_plugins_of(params, "dataset", "comparison_datasets")],
        root=root,
    )


def classifier_digest(root: Path = ROOT) -> str:
    """Return the digest of the code that trains the classifier behind FID-clf."""
    return digest(
        [("ebm_dist.metrics.features", name) for name in ("Config", "train", "is_possible")],
        root=root,
    )


def train_digest(params: Params | None, root: Path = ROOT) -> str:
    """Return the digest of the code that decides the result of training and of its export."""
    roots = [
        ("ebm_dist.training.trainer", ALL),
        ("ebm_dist.training.reduce", "TorchComm"),
        ("ebm_dist.models.trained", "export"),
    ]
    roots += [
        ("ebm_dist.chains.replay", "Config"),
        ("ebm_dist.training.optim", "Config"),
    ]  # their defaults
    return digest(
        [*roots, *_plugins_of(params, "energy", "sampler", "objective")], _ruled_out(params), root
    )


def evaluate_digest(
    params: Params | None, suite: str, *, figures: bool = True, root: Path = ROOT
) -> str:
    """Return the digest of the code of a suite, for these settings or any.

    With ``figures=False`` the code that draws figures is left out: it decides no metric.
    """
    roots = [
        ("ebm_dist.evaluation", "over_seeds"),
        ("ebm_dist.models.trained", "load"),
        ("ebm_dist.metrics.features", "load"),
    ]
    roots += _whole(f"ebm_dist.evaluation.{suite}")
    # a check refuses data, and decides no result
    skipped = [(f"ebm_dist.evaluation.{suite}", "check"), *_ruled_out(params)]
    skipped += [] if figures else [_FIGURES]
    return digest([*roots, *_plugins_of(params, "energy", "sampler", "objective")], skipped, root)


def register_digest(root: Path = ROOT) -> str:
    """Return the digest of the code that registers a model."""
    return digest(
        [("ebm_dist.registry.versions", "register"), *_whole("ebm_dist.registry.serving")],
        root=root,
    )


def tune_digest(root: Path = ROOT) -> str:
    """Return the digest of the code of a search with all plugins."""
    roots = [
        ("ebm_dist.search.driver", "find"),
        ("ebm_dist.search.report", "write"),
        ("ebm_dist.search.scores", ALL),
    ]
    return digest(
        [*roots, ("ebm_dist.training.trainer", ALL), *_plugins_of(None, "energy")], root=root
    )


def tabular_digest(root: Path = ROOT) -> str:
    """Return the digest of the code that scores detectors on tables."""
    roots = [
        ("pipelines.tabular", "score"),
        ("ebm_dist.training.trainer", ALL),
        *_whole("ebm_dist.api.detector", "ebm_dist.api.experts", "ebm_dist.metrics.detectors"),
        *_whole("ebm_dist.energies.mlp", "ebm_dist.energies.conditionals"),
        *_whole("ebm_dist.objectives.score_matching", "ebm_dist.objectives.masked_likelihood"),
    ]
    return digest(roots, _ruled_out(None), root)
