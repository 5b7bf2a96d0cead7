"""Parameter files: YAML text to a frozen, typed, checked tree of ``Config`` objects.

The folder is the registry. A section of the file is typed by the ``Config`` of the module that it
configures: ``replay:`` by ``ebm_dist/chains/replay.py``; a plugin section such as ``sampler: {name:
langevin, ...}`` by ``ebm_dist/samplers/langevin.py``. This module knows the sections but not their
content, and imports a module only when a file names it.

A ``Config`` may have ``check(self, params)``, which raises :class:`Mismatch` if its values do not
fit another section.
"""

import ast
import difflib
import hashlib
import importlib
import inspect
import json
import logging
import pkgutil
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import DataclassSchema
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ebm_dist.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
_PLAIN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_PLAIN_RULE = "letters, digits, '.', '_' and '-', the first a letter or digit"
PlainName = Annotated[str, Field(pattern=f"^{_PLAIN_NAME}$")]
"""A name that is also that of a file or folder, or part of an address."""

T = TypeVar("T")
log = logging.getLogger(__name__)
TRAINING = ("seed", "dataset", "energy", "sampler", "objective", "train", "replay", "optimizer")
"""Sections that decide the result of training."""

DATA = ("dataset", "comparison_datasets")
"""Sections that decide the prepared data."""

RENAMED = {"others": "comparison_datasets"}
"""Sections with a new name, by their old name, which is accepted with a warning."""

_NUMBERS = {"seed": 0, "num_seeds": 1}  # keys of the file that are not sections
_MAX_BYTES = 1 << 20
_PLAIN = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")]
# pydantic could read the docstrings of the fields, but does it at each import, for half a second
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a ``Config``: a frozen dataclass with checked values.

    The docstrings of the fields are the help texts of the settings (:func:`help_texts`).
    """
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)(
        cls
    )  # type: ignore[call-overload,no-any-return,return-value]


class Mismatch(ValueError):
    """A value does not fit the rest of the file; raised by a ``check``.

    ``key`` is the dotted key of the value, or a tuple if a name contains dots. ``what`` and ``fix``
    are the parts of the :class:`ConfigError` that the user gets.
    """

    def __init__(self, key: str | tuple[str, ...], what: str, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what}; {fix}")
        self.what, self.fix = what, fix
        self.key = tuple(key.split(".")) if isinstance(key, str) else key


def plugin(folder: str, *, optional: bool = False) -> Any:
    """Declare a value that configures a plugin, or is None if it is ``optional``.

    ``{name: mlp, ...}`` under this key stands for ``ebm_dist/<folder>/mlp.py``.
    """
    metadata = {"folder": f"ebm_dist.{folder}"}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def _module(name: str) -> Any:
    return field(metadata={"module": f"ebm_dist.{name}"})


@dataclass(frozen=True, kw_only=True)
class Params:
    """A complete parameter file. The module of a section documents its values."""

    seed: int = 0
    num_seeds: int = 1
    dataset: Any = plugin("datasets")
    comparison_datasets: dict[str, Any] = field(
        metadata={"each": "ebm_dist.datasets", "name_is_key": False}
    )
    energy: Any = plugin("energies")
    sampler: Any = plugin("samplers")
    objective: Any = plugin("objectives")
    train: Any = _module("training.trainer")
    replay: Any = _module("chains.replay")
    optimizer: Any = _module("training.optim")
    cluster: Any = _module("runs.cluster")
    features: Any = _module("metrics.features")
    evaluation: dict[str, Any] = field(
        metadata={"each": "ebm_dist.evaluation", "name_is_key": True}
    )
    tracking: Any = _module("runs.tracking")
    register: Any = _module("registry.versions")
    tune: Any = _module("search.study")

    @property
    def is_complete(self) -> bool:
        """Whether no section that names a plugin is missing, which :func:`load` may allow."""
        return None not in (self.dataset, self.energy, self.sampler, self.objective)

    def as_dict(self, *names: str) -> dict[str, Any]:
        """Return the values of the named sections, or of all, with defaults, as JSON values."""
        section_names = names or tuple(f.name for f in fields(self))
        values: dict[str, Any] = json.loads(
            json.dumps({name: _plain(getattr(self, name)) for name in section_names})
        )
        return values

    def digest(self, *names: str) -> str:
        """Return the SHA-256 of :meth:`as_dict`, which is equal for files with equal values."""
        return hashlib.sha256(json.dumps(self.as_dict(*names), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if not is_dataclass(value):
        return value
    name, added = plugin_name(value), getattr(value, "added_keys", ())
    return ({"name": name} if name else {}) | {
        f.name: _plain(getattr(value, f.name))
        for f in fields(value)
        # digests of files written before these keys stay as they were
        if f.name not in added or getattr(value, f.name) != f.default
    }


def module_of(config: Any) -> ModuleType:
    """Return the module of a ``Config``.

    ``module_of(params.sampler).build(params.sampler, ...)`` builds the sampler of a file.
    """
    return sys.modules[type(config).__module__]


def modules_of(config: Any) -> list[ModuleType]:
    """Return the module of a ``Config`` and, recursively, of the plugins among its values."""
    return [
        module_of(config),
        *(
            module
            for name in _folders(type(config))
            if getattr(config, name) is not None
            for module in modules_of(getattr(config, name))
        ),
    ]


def _folders(kind: Any) -> dict[str, str]:
    """Return the folder of each value that configures a plugin."""
    return {f.name: f.metadata["folder"] for f in fields(kind) if "folder" in f.metadata}


def plugin_name(config: Any) -> str | None:
    """Return ``"langevin"`` for the ``Config`` of ``ebm_dist/samplers/langevin.py``.

    Return None for the ``Config`` of a module that is not a plugin, and for any other dataclass.
    """
    module = type(config).__module__
    package, _, name = module.rpartition(".")
    is_config = type(config) is getattr(sys.modules[module], "Config", None)
    is_named_by_its_section = any(module == f.metadata.get("module") for f in fields(Params))
    return name if is_config and package.count(".") and not is_named_by_its_section else None


def plugins(folder: str) -> list[str]:
    """Return the sorted names of the plugins of a package such as ``ebm_dist.samplers``.

    They are its files, except those with a name that begins with ``_``.
    """
    names = (entry.name for entry in pkgutil.iter_modules(importlib.import_module(folder).__path__))
    return sorted(name for name in names if not name.startswith("_"))


def load(
    path: Path | str,
    *,
    seed: int | None = None,
    needed: tuple[str, ...] = (),
    skips_others: bool = False,
) -> Params:
    """Read, type and check a parameter file.

    ``seed`` replaces that of the file: a replicate changes only this value. With ``needed``, other
    sections that name a plugin may be missing: their value is then None, and only the needed
    sections are checked against the rest; with ``skips_others`` others are not even read, and are
    None. Raise :class:`ConfigError` with file, line, key, the
    expected value and, for a misspelt name, the nearest one.
    """
    values, lines = read(Path(path))
    values |= {} if seed is None else {"seed": seed}
    return _typed(_Source(Path(path), values, lines), needed, skips_others=skips_others)


def from_values(values: dict[str, Any], origin: Path) -> Params:
    """Type and check values such as those of :meth:`Params.as_dict`.

    Missing sections have their defaults. Raise :class:`ConfigError` like :func:`load`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected sections, found {type(values).__name__}")
    return _typed(_with_new_names(_Source(origin, values, {})))


def _typed(
    source: "_Source", needed: tuple[str, ...] = (), *, skips_others: bool = False
) -> Params:
    metadata_of = {f.name: f.metadata for f in fields(Params)}
    source.refuse_unknown((), source.values, [*metadata_of, "recipe"])
    sections: dict[str, Any] = {}
    for name, metadata in metadata_of.items():
        value = source.values.get(name, {} if metadata else _NUMBERS[name])
        if skips_others and metadata and name not in needed:
            sections[name] = None
        elif not metadata:
            sections[name] = _checked(
                int if name == "seed" else PositiveInt, value, source, (name,)
            )
        elif not isinstance(value, dict):
            raise source.error((name,), f"expected a section with keys, found {value!r}")
        elif "module" in metadata:
            sections[name] = _checked(
                importlib.import_module(metadata["module"]).Config, value, source, (name,)
            )
        elif "folder" in metadata:
            is_missing = needed and name not in needed and name not in source.values
            sections[name] = (
                None if is_missing else _section(source, (name,), metadata["folder"], value)
            )
        else:  # several plugins of one folder, each under its own key
            sections[name] = {}
            for key, entry in value.items():
                source.check_name((name, key))
                if not isinstance(entry, dict | None):
                    raise source.error((name, key), f"expected keys, found {entry!r}")
                implied = {"name": key} if metadata["name_is_key"] else {}
                sections[name][key] = _section(
                    source, (name, key), metadata["each"], implied | (entry or {})
                )
    params = Params(**sections)
    _check_pairs(params, source, () if params.is_complete else needed)
    return params


def reference(section: str | None = None) -> Iterator[str]:
    """List the settings as lines of text: sections, plugins, and keys with type, default and help.

    ``section``: list only this one, such as ``train``, ``sampler`` or ``sampler.mala``. Raise
    :class:`ConfigError` if it does not exist.
    """
    titles: list[str] = []
    is_listed = False
    for title, name, config in _configs():
        titles += [title, f"{title}.{name}"] if name else [title]
        if section not in (None, title, f"{title}.{name}"):
            continue
        is_listed = True
        yield f"{title}: {{name: {name}}}" if name else f"{title}:"
        texts = help_texts(config)
        for key, info in config.__pydantic_fields__.items():
            default = (
                "required"
                if info.is_required()
                else f"default {info.get_default(call_default_factory=True)!r}"
            )
            yield f"  {key} ({_kind(info.annotation)}, {default})"
            yield f"      {' '.join(texts.get(key, '').split())}"
    if not is_listed:
        fix = nearest(str(section), list(dict.fromkeys(titles)))
        raise ConfigError(f"{section}: no such section", fix)


def help_texts(config: type) -> dict[str, str]:
    """Return the docstrings of the fields of a ``Config``, from its source."""
    texts = dict[str, str]()
    for cls in reversed(config.__mro__):
        if "__dataclass_fields__" not in vars(cls):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in pairwise(definition.body):
            match statement, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    texts[name] = inspect.cleandoc(text)
    return texts


class _WithHelp(GenerateJsonSchema):
    """Add the docstrings of the fields to the JSON schema."""

    def dataclass_schema(self, schema: DataclassSchema) -> JsonSchemaValue:
        described = super().dataclass_schema(schema)
        for key, text in help_texts(schema["cls"]).items():
            described["properties"][key]["description"] = text
        return described


def _configs() -> Iterator[tuple[str, str, Any]]:
    """Yield section, name of the plugin ("" if the section has none) and class of each ``Config``.

    Nested plugins follow the sections that hold them.
    """
    sections = [
        (f.name, f.metadata.get("folder") or f.metadata.get("each"), f.metadata.get("module"))
        for f in fields(Params)
    ]
    folders = {folder for _, folder, _ in sections}  # a plugin may hold another of its own kind
    for title, folder, module in sections:
        for path in filter(
            None, [f"{folder}.{name}" for name in plugins(folder)] if folder else [module]
        ):
            config = importlib.import_module(path).Config
            nested = [(f"{title}.{key}", inner, None) for key, inner in _folders(config).items()]
            sections += [
                entry for entry in nested if entry[1] not in folders and entry not in sections
            ]
            yield title, path.rsplit(".", 1)[1] if folder else "", config


def schema() -> dict[str, Any]:
    """Return a JSON schema of the parameter file, for editors that complete and check YAML.

    It does not require the keys that a file may take from its base. :func:`load` requires them.
    """
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "base": {"type": "string", "description": "Parameter file that this one is derived from."},
        "recipe": {"type": "string", "description": "Parameter file that the pipeline uses."},
        "seed": {"type": "integer"},
        "num_seeds": {"type": "integer", "minimum": 1},
    }
    named: list[str] = []
    for entry in fields(Params):
        if "module" in entry.metadata:
            properties[entry.name] = _config_schema(entry.metadata["module"], definitions)
        elif "folder" in entry.metadata:
            properties[entry.name] = _folder_schema(entry.metadata["folder"], definitions)
            named.append(entry.name)
        elif "each" in entry.metadata:
            folder = entry.metadata["each"]
            plugin_schema = {**_folder_schema(folder, definitions), "required": ["name"]}
            properties[entry.name] = {
                "type": "object",
                "additionalProperties": plugin_schema,
                "propertyNames": {"pattern": f"^{_PLAIN_NAME}$"},
            }
            if entry.metadata["name_is_key"]:
                properties[entry.name]["properties"] = {
                    name: {"anyOf": [definitions[f"{folder}.{name}"], {"type": "null"}]}
                    for name in plugins(folder)
                }
    properties |= {old: {**properties[new], "deprecated": True} for old, new in RENAMED.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"required": ["base"]},
        "else": {"properties": {name: {"required": ["name"]} for name in named}},
        "$defs": definitions,
    }


def _folder_schema(folder: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a reference to the schema of a folder's plugins, and add it to the definitions."""
    if folder not in definitions:
        paths = [f"{folder}.{name}" for name in plugins(folder)]
        definitions[folder] = {"anyOf": [{"$ref": f"#/$defs/{path}"} for path in paths]}
        for path in paths:
            config = _config_schema(path, definitions)
            name = {"const": path.rsplit(".", 1)[1]}
            definitions[path] = config | {"properties": {"name": name, **config["properties"]}}
    return {"$ref": f"#/$defs/{folder}"}


def _config_schema(module: str, definitions: dict[str, Any]) -> dict[str, Any]:
    config = importlib.import_module(module).Config
    described: dict[str, Any] = pydantic.TypeAdapter(config).json_schema(schema_generator=_WithHelp)
    definitions |= described.pop("$defs", {})
    described.setdefault("properties", {})
    for key, folder in _folders(config).items():
        schema, about = _folder_schema(folder, definitions), described["properties"][key]
        about |= {"anyOf": [schema, {"type": "null"}]} if "default" in about else schema
    return {key: value for key, value in described.items() if key not in ("title", "required")}


def _kind(annotation: Any) -> str:
    """Return a type in the terms of YAML."""
    arguments = [_kind(argument) for argument in typing.get_args(annotation)]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(argument for argument in arguments if argument != "NoneType")
    if origin is typing.Literal:
        return " or ".join(map(str, typing.get_args(annotation)))
    if origin is tuple:
        return f"[{', '.join(arguments).replace('Ellipsis', '...')}]"
    return str(getattr(annotation, "__name__", annotation))


class _Source:
    """A parsed file: its values, and file and line of each key."""

    def __init__(self, path: Path, values: dict[str, Any], lines: "Lines") -> None:
        self.path, self.values, self.lines = path, values, lines

    def error(self, key: tuple[Any, ...], what: str, fix: str | None = None) -> ConfigError:
        """Return the error at a key, at the line of the key or of the nearest key around it."""
        located = key
        while located and located not in self.lines:
            located = located[:-1]
        path, line = self.lines.get(located, (self.path, 1))
        return ConfigError(f"{path}:{line}: {'.'.join(map(str, key)) or 'file'}: {what}", fix)

    def refuse_unknown(
        self, key: tuple[Any, ...], values: dict[str, Any], names: list[str]
    ) -> None:
        for name in values:
            if name not in names:
                raise self.error((*key, name), "unknown key", nearest(str(name), names))

    def check_name(self, key: tuple[str, str]) -> None:
        """Raise :class:`ConfigError` unless a folder may have the name that is the last key."""
        if not re.fullmatch(_PLAIN_NAME, key[-1]):
            raise self.error(
                key,
                f"{key[-1]!r} becomes the name of a folder",
                f"use {_PLAIN_RULE}",
            )
        if key == ("comparison_datasets", "dataset"):
            raise self.error(key, "is the name of the training data's folder", "choose another")


def nearest(name: str, names: list[str]) -> str:
    """Return the fix for an unknown name: the nearest of ``names``, or all."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(names)}"


def _section(source: _Source, key: tuple[str, ...], folder: str, value: dict[str, Any]) -> Any:
    """Return the ``Config`` of the plugin ``value["name"]``.

    The name is that of a file in the folder, never an import path.
    """
    names = plugins(folder)
    if not isinstance(value, dict) or "name" not in value:
        raise source.error(key, "a name is needed", f"one of {', '.join(names)}")
    if value["name"] not in names:
        raise source.error(
            (*key, "name"),
            f"no {value['name']!r} in {folder}",
            nearest(str(value["name"]), names),
        )
    config = importlib.import_module(f"{folder}.{value['name']}").Config
    return _checked(config, {k: v for k, v in value.items() if k != "name"}, source, key)


def _checked(kind: Any, value: Any, source: _Source, key: tuple[Any, ...]) -> Any:
    try:
        # through JSON: a YAML list may stand for a tuple, and every other type stays strict
        config = pydantic.TypeAdapter(
            kind, config=None if is_dataclass(kind) else ConfigDict(strict=True)
        ).validate_json(json.dumps(value))
    except pydantic.ValidationError as failed:
        first = failed.errors()[0]
        tags = [
            part for part in first["loc"] if re.search(r"[^\w.]", str(part))
        ]  # pydantic's names for the members of a union
        wrong_key = (*key, *(part for part in first["loc"] if part not in tags))
        if first["type"] == "unexpected_keyword_argument":
            owner = _owner(kind, first["loc"][:-1])
            fix = nearest(str(first["loc"][-1]), [f.name for f in fields(owner)])
            raise source.error(wrong_key, "unknown key", fix) from None
        if first["type"] in ("missing", "missing_argument"):
            raise source.error(wrong_key, "missing", "set a value") from None
        messages = dict.fromkeys(
            f"expected {_PLAIN_RULE}"
            if error["type"] == "string_pattern_mismatch"
            else error["msg"]
            for error in (failed.errors() if tags else [first])
        )
        expected = " or ".join(text[0].lower() + text[1:] for text in messages)
        raise source.error(wrong_key, f"{expected}, found {first['input']!r}") from None
    folders = _folders(kind) if is_dataclass(kind) else {}
    nested = {
        name: _section(source, (*key, name), folder, getattr(config, name))
        for name, folder in folders.items()
        if getattr(config, name) is not None or kind.__dataclass_fields__[name].default is not None
    }
    return replace(config, **nested) if nested else config


def _owner(kind: Any, location: tuple[Any, ...]) -> Any:
    for part in location:
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        kind = hints.get(part, kind)
        kind = next(_dataclasses(kind), kind)
    return kind


def _dataclasses(kind: Any) -> Iterator[Any]:
    """Yield the dataclasses in a type, such as that of the entries of an optional dict."""
    if is_dataclass(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from _dataclasses(argument)


def _check_pairs(params: Params, source: _Source, names: tuple[str, ...] = ()) -> None:
    """Check the named sections, or all, against the rest of the file."""
    for name in names or [entry.name for entry in fields(Params)]:
        section_value = getattr(params, name)
        configs = section_value.values() if isinstance(section_value, dict) else [section_value]
        for config in configs:
            check: Callable[[Params], None] | None = getattr(config, "check", None)
            try:
                if check:
                    check(params)
            except Mismatch as mismatch:
                raise source.error(mismatch.key, mismatch.what, mismatch.fix) from None


Lines = dict[tuple[Any, ...], tuple[Path, int]]
_REPLACING = (("evaluation",), ("comparison_datasets",))


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a parameter file over the file that its key ``base`` names, without typing the values.

    A section is merged key by key with that of the base if both name the same plugin. Otherwise it
    replaces the section of the base. The sections ``evaluation`` and ``comparison_datasets`` always
    replace. Return the values, and file and line of each key. Raise :class:`ConfigError`.
    """
    values, lines = read_one(path)
    if "base" not in values:
        return values, lines
    source, base = _Source(path, values, lines), values.pop("base")
    if not isinstance(base, str):
        raise source.error(("base",), f"expected the path of a parameter file, found {base!r}")
    if not (path.parent / base).is_file():
        raise source.error(
            ("base",), f"no file {path.parent / base}", "give a path relative to this file"
        )
    base_values, base_lines = read_one(path.parent / base)
    if "base" in base_values:
        raise source.error(
            ("base",), f"{base} has a base itself", "name that one, or write the sections out"
        )
    merged = _merge(base_values, values, base_lines)
    return merged, base_lines | lines


def _merge(
    base: dict[str, Any], values: dict[str, Any], base_lines: Lines, key: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Merge values over those of the base, and drop the lines of what they replace."""
    merged = dict(base)
    for name, value in values.items():
        base_value, path = base.get(name), (*key, name)
        is_same_plugin = (
            isinstance(value, dict)
            and isinstance(base_value, dict)
            and value.get("name", base_value.get("name")) == base_value.get("name")
        )
        if is_same_plugin and path not in _REPLACING:
            merged[name] = _merge(base_value or {}, value, base_lines, path)
            continue
        merged[name] = value
        for replaced in [other for other in base_lines if other[: len(path)] == path]:
            del base_lines[replaced]
    return merged


def read_one(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read one file, without its base; old names of sections are replaced by the new ones.

    Return the values, and file and line of each key. Raise :class:`ConfigError`.
    """
    values, numbers = _parse(path)
    lines = {key: (path, number) for key, number in numbers.items()}
    source = _with_new_names(_Source(path, values, lines))
    return source.values, source.lines


def _with_new_names(source: _Source) -> _Source:
    """Replace old names of sections, with a warning."""
    for old, new in RENAMED.items():
        if old not in source.values:
            continue
        if new in source.values:
            raise source.error((old,), f"old name of {new!r}, which is there too", "keep only one")
        log.warning("%s", source.error((old,), "this section has a new name", f"write {new!r}"))
        values = {new if key == old else key: value for key, value in source.values.items()}
        lines = {
            (new, *key[1:]) if key[:1] == (old,) else key: line
            for key, line in source.lines.items()
        }
        source = _Source(source.path, values, lines)
    return source


def _parse(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """Return values and line numbers of a YAML 1.2 file.

    DVC reads the same dialect, in which ``1e-3`` is a number.
    """
    try:
        text = path.read_bytes()
    except OSError as failed:
        raise ConfigError(
            f"{path}: cannot be read ({failed.strerror})", "give a parameter file with --params"
        ) from None
    if len(text) > _MAX_BYTES:
        raise ConfigError(
            f"{path}: {len(text)} bytes is too large for a parameter file (limit {_MAX_BYTES})"
        )
    try:
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(text.decode("utf-8-sig"))
    except MarkedYAMLError as failed:
        line = failed.problem_mark.line + 1 if failed.problem_mark else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {failed.problem or failed.context}"
        ) from None
    except (YAMLError, UnicodeDecodeError) as failed:
        raise ConfigError(f"{path}:1: not valid YAML text: {failed}") from None
    except RecursionError:
        raise ConfigError(f"{path}:1: nested too deeply for a parameter file") from None
    if not isinstance(node, MappingNode):
        raise ConfigError(
            f"{path}:1: expected sections such as 'sampler:', found"
            f" {'nothing' if node is None else 'a value'}"
        )
    lines: dict[tuple[Any, ...], int] = {}
    seen: set[int] = set()

    def value_of(node: Node, key: tuple[Any, ...]) -> Any:
        line = node.start_mark.line + 1
        if id(node) in seen:
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: aliases (*name) are not allowed",
                "repeat the value",
            )
        seen.add(id(node))
        lines.setdefault(key, line)
        if isinstance(node, MappingNode):
            values: dict[str, Any] = {}
            for name_node, entry in node.value:
                name, line = name_node.value, name_node.start_mark.line + 1
                if not isinstance(name_node, ScalarNode) or not isinstance(name, str):
                    raise ConfigError(f"{path}:{line}: a key must be a word")
                lines[(*key, name)] = line
                if name in values:
                    raise ConfigError(
                        f"{path}:{line}: {'.'.join(map(str, (*key, name)))}: key given twice",
                        "remove one",
                    )
                values[name] = value_of(entry, (*key, name))
            return values
        if isinstance(node, SequenceNode):
            return [value_of(entry, (*key, i)) for i, entry in enumerate(node.value)]
        kind = str(node.tag)
        if kind not in _PLAIN:
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: only plain values are allowed,"
                f" found {kind}"
            )
        try:
            return yaml.constructor.yaml_constructors[kind](yaml.constructor, node)
        except (ValueError, KeyError):
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: cannot read {node.value!r}"
            ) from None

    return value_of(node, ()), lines
