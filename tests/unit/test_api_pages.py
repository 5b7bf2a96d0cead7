"""The Python blocks of the pages about the library run, in order, in a folder of their own."""

import re
from pathlib import Path

import pytest

import ebm_dist as ebm
from tests.helpers import ROOT

PAGES = [ROOT / f"docs/{page}.md" for page in ("api", "howto/from-torchebm", "howto/from-blackjax")]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(blocks(page)) >= 2
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


def test_the_page_shows_every_public_name():
    code = "\n".join(blocks(PAGES[0]))
    assert [name for name in ebm.__all__ if f"ebm.{name}" not in code] == []
