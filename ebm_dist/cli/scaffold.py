"""Write a new plugin as a working copy of a plain one, which passes the contract tests as it is."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from ebm_dist.config import plugins
from ebm_dist.errors import ConfigError


class Kind(NamedTuple):
    """A kind of plugin, and how to write a new one."""

    folder: str
    like: str
    """the plugin to copy by default"""
    use: str
    """how a parameter file names the new plugin"""


KINDS = {
    "sampler": Kind("samplers", "langevin", "sampler: {{name: {name}}}"),
    "objective": Kind("objectives", "contrastive_divergence", "objective: {{name: {name}}}"),
    "energy": Kind("energies", "mlp", "energy: {{name: {name}}}"),
    "generator": Kind("generators", "mlp", "objective: {{generator: {{name: {name}}}}}"),
    "dataset": Kind("datasets", "digits", "dataset: {{name: {name}}}"),
    "evaluation": Kind(
        "evaluation",
        "histogram",
        "evaluation: {{{name}: {{}}}}, and a line among the suites of dvc.yaml",
    ),
}


def write(kind: str, name: str, root: Path, like: str | None = None) -> tuple[Path, str]:
    """Write the file; return its path and how to use it.

    Raise :class:`ConfigError` for a name that is invalid or taken.
    """
    template = KINDS[kind]
    existing = plugins(f"ebm_dist.{template.folder}")
    like = like or template.like
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(
            f"{name!r}: a plugin's name is that of its file: small letters, digits and _,"
            f" such as my_{kind}"
        )
    if name in existing:
        raise ConfigError(f"{name!r}: there is one already; choose another name")
    if like not in existing:
        raise ConfigError(f"--like {like!r}: no such {kind}; there: {', '.join(existing)}")
    folder = root / "ebm_dist" / template.folder
    source = (folder / f"{like}.py").read_text()
    end = ast.parse(source).body[0].end_lineno or 1  # of the docstring
    rest = "".join(source.splitlines(keepends=True)[end:])
    title = (
        f"{name.replace('_', ' ').capitalize()}: what it does, and its paper, section, equation."
    )
    docstring = f'"""{title}\n\nStarted as a copy of {like}.\n"""\n'
    path = folder / f"{name}.py"
    path.write_text(docstring + rest)
    return path, template.use.format(name=name)
