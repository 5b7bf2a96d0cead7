"""Parameter files: YAML text to a frozen, typed, checked tree of ``Config`` objects.

The folder is the registry. A section of the file is typed by the ``Config`` of the module that it configures: ``replay:`` by
``ebm_dist/chains/replay.py``; a plugin section such as ``sampler: {name: langevin, ...}`` by ``ebm_dist/samplers/langevin.py``. This
file knows the sections, not what is in them, and imports no module before a file names it.

A ``Config`` may have ``check(self, params)``, which raises :class:`Mismatch` where its values do not fit another section.
"""

import difflib
import hashlib
import importlib
import json
import logging
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ebm_dist.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]

T = TypeVar("T")
log = logging.getLogger(__name__)
TRAINING = ("seed", "dataset", "energy", "sampler", "objective", "train", "replay", "optimizer")
"""The sections that decide the result of training."""

RENAMED = {"others": "comparison_datasets"}
"""Keys of a parameter file that have a new name; the old one is accepted with a warning."""

_NUMBERS = {"seed": 0, "num_seeds": 1}  # keys of the file that are no sections
_MAX_BYTES = 1 << 20
_PLAIN = [f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")]
_STRICT = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def section(cls: type[T]) -> type[T]:
    """Make a class a ``Config``: a frozen dataclass whose values are checked and whose field docstrings are the help text."""
    return pydantic.dataclasses.dataclass(frozen=True, kw_only=True, slots=True, config=_STRICT)(
        cls
    )  # type: ignore[call-overload,no-any-return,return-value]


class Mismatch(ValueError):
    """A value does not fit the rest of the file; raised by a ``check`` with the dotted key to blame, a tuple if a name has dots."""

    def __init__(self, key: str | tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.key = tuple(key.split(".")) if isinstance(key, str) else key


def plugin(folder: str) -> Any:
    """A value that is itself a plugin's: ``{name: mlp, ...}`` under this key means ``ebm_dist/<folder>/mlp.py``."""
    return field(metadata={"folder": f"ebm_dist.{folder}"})


def _module(name: str) -> Any:
    return field(metadata={"module": f"ebm_dist.{name}"})


@dataclass(frozen=True, kw_only=True)
class Params:
    """A whole parameter file. The values of a section are documented by the module that it names."""

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

    def as_dict(self, *names: str) -> dict[str, Any]:
        """The values with all defaults filled in, of the named sections or of all, as JSON can hold them."""
        chosen = names or tuple(f.name for f in fields(self))
        plain: dict[str, Any] = json.loads(
            json.dumps({name: _plain(getattr(self, name)) for name in chosen})
        )
        return plain

    def digest(self, *names: str) -> str:
        """SHA-256 of :meth:`as_dict`: the same for two files that mean the same."""
        return hashlib.sha256(json.dumps(self.as_dict(*names), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if not is_dataclass(value):
        return value
    name = plugin_name(value)
    return ({"name": name} if name else {}) | {
        f.name: _plain(getattr(value, f.name)) for f in fields(value)
    }


def module_of(config: Any) -> ModuleType:
    """The module whose ``Config`` this is: ``module_of(params.sampler).build(params.sampler, ...)``."""
    return sys.modules[type(config).__module__]


def modules_of(config: Any) -> list[ModuleType]:
    """That module, and those of the plugins among the values, and among theirs."""
    return [
        module_of(config),
        *(
            module
            for name in _folders(type(config))
            for module in modules_of(getattr(config, name))
        ),
    ]


def _folders(kind: Any) -> dict[str, str]:
    """Where the values that are themselves plugins' come from."""
    return {f.name: f.metadata["folder"] for f in fields(kind) if "folder" in f.metadata}


def plugin_name(config: Any) -> str | None:
    """``"langevin"`` for the ``Config`` of ``ebm_dist/samplers/langevin.py``; None if it is not a plugin's."""
    module = type(config).__module__
    package, _, name = module.rpartition(".")
    is_named_by_its_section = any(module == f.metadata.get("module") for f in fields(Params))
    is_plugin = (
        type(config).__name__ == "Config" and package.count(".") and not is_named_by_its_section
    )
    return name if is_plugin else None


def plugins(folder: str) -> list[str]:
    """The names of the plugins of a package such as ``ebm_dist.samplers``: its files, sorted, but those that begin with ``_``."""
    names = (entry.name for entry in pkgutil.iter_modules(importlib.import_module(folder).__path__))
    return sorted(name for name in names if not name.startswith("_"))


def load(path: Path | str, *, seed: int | None = None) -> Params:
    """Read, type and check a parameter file.

    ``seed`` replaces the file's: the one value that a replicate changes. Raises :class:`ConfigError` whose text has file, line,
    key, what was expected and, for a misspelt name, the nearest one.
    """
    values, lines = read(Path(path))
    return _typed(_Source(Path(path), values | ({} if seed is None else {"seed": seed}), lines))


def from_values(values: dict[str, Any], origin: Path) -> Params:
    """As :func:`load`, from values that :meth:`Params.as_dict` gave; missing sections have their defaults.

    Raises :class:`ConfigError` as it does.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected sections, found {type(values).__name__}")
    return _typed(_Source(origin, values, {}))


def _typed(source: "_Source") -> Params:
    known = {f.name: f.metadata for f in fields(Params)}
    source.only_known((), source.values, [*known, "recipe"])
    sections: dict[str, Any] = {}
    for name, metadata in known.items():
        value = source.values.get(name, {} if metadata else _NUMBERS[name])
        if not metadata:
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
            sections[name] = _section(source, (name,), metadata["folder"], value)
        else:  # several plugins of one folder, each under a key of its own
            sections[name] = {}
            for key, entry in value.items():
                if not isinstance(entry, dict | None):
                    raise source.error((name, key), f"expected keys, found {entry!r}")
                implied = {"name": key} if metadata["name_is_key"] else {}
                sections[name][key] = _section(
                    source, (name, key), metadata["each"], implied | (entry or {})
                )
    params = Params(**sections)
    _check_pairs(params, source)
    return params


def reference(section: str | None = None) -> Iterator[str]:
    """List every section, its plugins and their keys with type, default and meaning, as lines of text.

    ``section``: only this one, such as ``train``, ``sampler`` or ``sampler.mala``. Raises :class:`ConfigError` if there is none.
    """
    found = False
    for title, name, config in _configs():
        if section not in (None, title, f"{title}.{name}"):
            continue
        found = True
        yield f"{title}: {{name: {name}}}" if name else f"{title}:"
        for key, info in config.__pydantic_fields__.items():
            default = (
                "required"
                if info.is_required()
                else f"default {info.get_default(call_default_factory=True)!r}"
            )
            yield f"  {key} ({_kind(info.annotation)}, {default})"
            yield f"      {' '.join((info.description or '').split())}"
    if not found:
        names = [
            part
            for title, name, _ in _configs()
            for part in ([title, f"{title}.{name}"] if name else [title])
        ]
        raise ConfigError(
            f"{section}: no such section{nearest(str(section), list(dict.fromkeys(names)))}"
        )


def _configs() -> Iterator[tuple[str, str, Any]]:
    """Every ``Config``: section, name of the plugin ("" if the section has none), class. Nested plugins follow their holders."""
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
            sections += [
                (f"{title}.{key}", inner, None)
                for key, inner in _folders(config).items()
                if inner not in folders
            ]
            yield title, path.rsplit(".", 1)[1] if folder else "", config


def schema() -> dict[str, Any]:
    """Return a JSON schema of the parameter file, for editors that complete and check YAML."""
    properties: dict[str, Any] = {
        "seed": {"type": "integer"},
        "num_seeds": {"type": "integer", "minimum": 1},
    }
    properties |= {"base": {"type": "string"}, "recipe": {"type": "string"}}
    kinds = {f.name: f.metadata for f in fields(Params)}
    for title, name, config in _configs():
        if title not in kinds:
            continue  # a nested plugin is any object here: its own check comes with the file
        described = pydantic.TypeAdapter(config).json_schema()
        described.pop("title", None)
        if "each" in kinds[title] and kinds[title]["name_is_key"]:
            properties.setdefault(title, {"type": "object", "properties": {}})["properties"][
                name
            ] = described
        elif name:
            described["properties"] = {"name": {"const": name}, **described.get("properties", {})}
            described["required"] = ["name", *described.get("required", [])]
            one = properties.setdefault(
                title, {"oneOf": []} if "folder" in kinds[title] else _any_name(title)
            )
            (one["oneOf"] if "oneOf" in one else one["additionalProperties"]["oneOf"]).append(
                described
            )
        else:
            properties[title] = described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
    }


def _any_name(title: str) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"oneOf": []}}


def _kind(annotation: Any) -> str:
    """A type in the words of someone who writes YAML."""
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
    """A parsed file: its values, and the file and line that each key stands on."""

    def __init__(self, path: Path, values: dict[str, Any], lines: "Lines") -> None:
        self.path, self.values, self.lines = path, values, lines

    def error(self, key: tuple[Any, ...], message: str) -> ConfigError:
        found = key
        while found and found not in self.lines:
            found = found[:-1]
        path, line = self.lines.get(found, (self.path, 1))
        return ConfigError(f"{path}:{line}: {'.'.join(map(str, key)) or 'file'}: {message}")

    def only_known(self, key: tuple[Any, ...], values: dict[str, Any], known: list[str]) -> None:
        for name in values:
            if name not in known:
                raise self.error((*key, name), f"unknown key{nearest(str(name), known)}")


def nearest(name: str, known: list[str]) -> str:
    """What to add to a message about an unknown name: the nearest known one, or all."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _section(source: _Source, key: tuple[str, ...], folder: str, value: dict[str, Any]) -> Any:
    """The ``Config`` of the plugin that ``value["name"]`` names: a file of the folder, never an import path."""
    names = plugins(folder)
    if not isinstance(value, dict) or "name" not in value:
        raise source.error(key, f"a name is needed; one of {', '.join(names)}")
    if value["name"] not in names:
        raise source.error(
            (*key, "name"), f"no {value['name']!r} in {folder}{nearest(str(value['name']), names)}"
        )
    config = importlib.import_module(f"{folder}.{value['name']}").Config
    return _checked(config, {k: v for k, v in value.items() if k != "name"}, source, key)


def _checked(kind: Any, value: Any, source: _Source, key: tuple[Any, ...]) -> Any:
    try:
        # through JSON, so that a YAML list may stand for a tuple while every other type stays strict
        config = pydantic.TypeAdapter(
            kind, config=None if is_dataclass(kind) else ConfigDict(strict=True)
        ).validate_json(json.dumps(value))
    except pydantic.ValidationError as failed:
        first = failed.errors()[0]
        tags = [
            part for part in first["loc"] if re.search(r"[^\w.]", str(part))
        ]  # pydantic's names for the members of a union
        where = (*key, *(part for part in first["loc"] if part not in tags))
        if first["type"] == "unexpected_keyword_argument":
            owner = _owner(kind, first["loc"][:-1])
            message = "unknown key" + nearest(
                str(first["loc"][-1]), [f.name for f in fields(owner)]
            )
        elif first["type"] in ("missing", "missing_argument"):
            message = "missing; a value is needed"
        else:
            several = dict.fromkeys(
                error["msg"] for error in (failed.errors() if tags else [first])
            )
            message = (
                " or ".join(text[0].lower() + text[1:] for text in several)
                + f", found {first['input']!r}"
            )
        raise source.error(where, message) from None
    folders = _folders(kind) if is_dataclass(kind) else {}
    inner = {
        name: _section(source, (*key, name), folder, getattr(config, name))
        for name, folder in folders.items()
    }
    return replace(config, **inner) if inner else config


def _owner(kind: Any, location: tuple[Any, ...]) -> Any:
    for part in location:
        hints = typing.get_type_hints(kind) if is_dataclass(kind) else {}
        kind = hints.get(part, kind)
        kind = next(_dataclasses(kind), kind)
    return kind


def _dataclasses(kind: Any) -> Iterator[Any]:
    """The dataclasses that a type is made of, such as the entry of a dict that may be absent."""
    if is_dataclass(kind):
        yield kind
    for argument in typing.get_args(kind):
        yield from _dataclasses(argument)


def _check_pairs(params: Params, source: _Source) -> None:
    for entry in fields(Params):
        config = getattr(params, entry.name)
        for one in config.values() if isinstance(config, dict) else [config]:
            check: Callable[[Params], None] | None = getattr(one, "check", None)
            try:
                if check:
                    check(params)
            except Mismatch as mismatch:
                raise source.error(mismatch.key, str(mismatch)) from None


Lines = dict[tuple[Any, ...], tuple[Path, int]]
_WHOLE = ("evaluation", "comparison_datasets")


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a parameter file as it is written, over the file that its key ``base`` names, without typing or checking it.

    A section is merged key by key with the base's where both name the same plugin, else it replaces the base's. The sections
    ``evaluation`` and ``comparison_datasets`` always replace. Returns the values, and file and line of each key.
    Raises :class:`ConfigError`.
    """
    values, lines = read_one(path)
    base = values.pop("base", None)
    if base is None:
        return values, lines
    where = _Source(path, values, lines)
    if not isinstance(base, str):
        raise where.error(("base",), f"expected the path of a parameter file, found {base!r}")
    base_values, base_lines = read_one(path.parent / base)
    if "base" in base_values:
        raise where.error(
            ("base",), f"{base} has a base itself; name that one, or write the sections out"
        )
    return _merge(base_values, values, ()), base_lines | lines


def _merge(base: dict[str, Any], values: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in values.items():
        below = base.get(name)
        is_same = (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("name", below.get("name")) == below.get("name")
        )
        replaces = not is_same or (not key and name in _WHOLE)
        merged[name] = value if replaces else _merge(below or {}, value, (*key, name))
    return merged


def read_one(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read one file, without its base, with the present names of its sections. Raises :class:`ConfigError`."""
    values, numbers = _parse(path)
    lines = {key: (path, number) for key, number in numbers.items()}
    for old, new in RENAMED.items():
        if old in values:
            where = _Source(path, values, lines)
            if new in values:
                raise where.error(
                    (old,), f"is the old name of {new!r}, which the file has too; keep one of them"
                )
            log.warning("%s", where.error((old,), f"has been renamed; write {new!r}"))
            values = {new if key == old else key: value for key, value in values.items()}
            lines = {
                (new, *key[1:]) if key[:1] == (old,) else key: line for key, line in lines.items()
            }
    return values, lines


def _parse(path: Path) -> tuple[dict[str, Any], dict[tuple[Any, ...], int]]:
    """Values and line numbers of a YAML 1.2 file (the dialect that DVC reads, where ``1e-3`` is a number)."""
    try:
        text = path.read_bytes()
    except OSError as failed:
        raise ConfigError(
            f"{path}: cannot be read ({failed.strerror}); give a parameter file with --params"
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
            f"{path}:1: expected sections such as 'sampler:', found {'nothing' if node is None else 'a value'}"
        )
    lines: dict[tuple[Any, ...], int] = {}
    seen: set[int] = set()

    def value_of(node: Node, key: tuple[Any, ...]) -> Any:
        line = node.start_mark.line + 1
        if id(node) in seen:
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: aliases (*name) are not allowed; repeat the value"
            )
        seen.add(id(node))
        lines.setdefault(key, line)
        if isinstance(node, MappingNode):
            values: dict[str, Any] = {}
            for name_node, entry in node.value:
                name = name_node.value
                if not isinstance(name_node, ScalarNode) or not isinstance(name, str):
                    raise ConfigError(
                        f"{path}:{name_node.start_mark.line + 1}: a key must be a word"
                    )
                lines[(*key, name)] = name_node.start_mark.line + 1
                if name in values:
                    raise ConfigError(
                        f"{path}:{name_node.start_mark.line + 1}: {'.'.join([*key, name])}: key given twice"
                    )
                values[name] = value_of(entry, (*key, name))
            return values
        if isinstance(node, SequenceNode):
            return [value_of(entry, (*key, i)) for i, entry in enumerate(node.value)]
        kind = str(node.tag)
        if kind not in _PLAIN:
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: only plain values are allowed, found {kind}"
            )
        try:
            return yaml.constructor.yaml_constructors[kind](yaml.constructor, node)
        except (ValueError, KeyError):
            raise ConfigError(
                f"{path}:{line}: {'.'.join(map(str, key))}: cannot read {node.value!r}"
            ) from None

    return value_of(node, ()), lines
