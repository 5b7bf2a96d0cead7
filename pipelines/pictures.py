"""Copy the pictures of docs/pictures.md from the reports, made small, and write that page."""

import argparse
import io
from pathlib import Path
from typing import Any

from PIL import Image
from ruamel.yaml import YAML

from ebm_dist.storage import write_whole
from pipelines import ROOT, run

_WIDTH, _COLOURS = 900, 48
_HEAD = """\
# Pictures

The figures of the papers, drawn by the models of this repository: `python -m pipelines.pictures`
copies them from the reports of the last run (`pipelines/pictures.yaml`), and nothing is chosen by
hand. Networks are small and train in minutes on two cores; figures are in [results.md](results.md).
"""


def small(png: bytes) -> bytes:
    """Return a PNG of at most 900 pixels in width and 48 colours."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.width > _WIDTH:
        picture = picture.resize((_WIDTH, round(picture.height * _WIDTH / picture.width)))
    out = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def listed(path: Path = ROOT / "pipelines/pictures.yaml") -> dict[str, dict[str, Any]]:
    """Return the list of pictures, by name; ``file`` is that in docs/images/."""
    entries = YAML(typ="safe", pure=True).load(path.read_text())
    return {name: {**e, "file": name + Path(e["plot"]).suffix} for name, e in entries.items()}


def page(entries: dict[str, dict[str, Any]], drawn: set[str]) -> str:
    """Return docs/pictures.md, with the pictures that are there."""
    parts = [_HEAD]
    for name, entry in entries.items():
        if "of" not in entry:
            continue
        recipe = entry["plot"].partition("/")[0]
        text = f"Recipe [{recipe}](results.md#{recipe}). Beside: {entry['of']}."
        picture = f"![{entry['shows']}](images/{entry['file']})"
        parts.append(f"## {entry['shows']}\n\n{text}\n")
        parts.append(f"{picture}\n" if name in drawn else "Not drawn yet.\n")
    return "\n".join(parts)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--list", type=Path, default=ROOT / "pipelines/pictures.yaml")
    options.add_argument("--reports", type=Path, default=Path("reports"))
    options.add_argument("--out", type=Path, default=Path("docs"), help="folder of pictures.md")
    args = options.parse_args()
    entries, drawn = listed(args.list), set[str]()
    for name, entry in entries.items():
        recipe, suite, file = entry["plot"].split("/")
        path = args.reports / recipe / suite / "plots" / file
        target = args.out / "images" / entry["file"]
        if path.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = path.read_bytes()
            write_whole(target, picture if path.suffix == ".gif" else small(picture))
        if target.exists():
            drawn.add(name)
    write_whole(args.out / "pictures.md", page(entries, drawn).encode())
    print(f"{args.out}/pictures.md: {len(drawn)} of {len(entries)} pictures")


if __name__ == "__main__":
    run(main)
