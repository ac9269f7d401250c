"""docs/code.md names what is there: its paths exist, and the words to look for stand where it says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.fakes import ROOT

PAGE = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| `([^`]+)` \| `([^`]+)` \|$", PAGE, re.MULTILINE)
PATHS = sorted(set(re.findall(r"`((?:rk3588|convert|runtime|tests|docs)/[\w./-]*)`", PAGE)))


def texts(path: Path) -> list[str]:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.suffix in (".py", ".cpp", ".h")]
    return [each.read_text(encoding="utf-8") for each in files]


def test_the_page_is_a_page() -> None:
    assert len(ROWS) > 20 and len(PATHS) > 20
    assert len([line for line in PAGE.splitlines() if not line.startswith("|")]) < 100
    assert "(docs/code.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("what", "path", "word"), ROWS, ids=[row[0] for row in ROWS])
def test_what_to_look_for_is_there(what: str, path: str, word: str) -> None:
    assert any(word in text for text in texts(ROOT / path)), f"{what}: {path} has no {word!r}"


@pytest.mark.parametrize("path", PATHS)
def test_a_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_make_help_has_every_target() -> None:
    described = re.findall(r"^(\S+):.*?  ## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert sorted(re.findall(r"^make (\S+)", told, re.MULTILINE)) == sorted(described)


def test_links_lead_to_pages() -> None:
    for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGE):
        assert (ROOT / "docs" / name).is_file(), name
