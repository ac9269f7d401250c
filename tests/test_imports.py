"""No circle of imports in the converter, those inside functions included."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import rkconvert

FOLDER = Path(rkconvert.__file__).parent


def imported(file: Path, package: str) -> Iterator[str]:
    """Every name that ``file`` may load a module by, with its own package in front of what is relative."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_no_circle_of_imports_in_the_converter() -> None:
    modules = {}
    for file in FOLDER.rglob("*.py"):
        if file.name != "__init__.py":  # none of them imports a module of ours
            modules[".".join(("rkconvert", *file.relative_to(FOLDER).with_suffix("").parts))] = file
    uses = {name: {*imported(file, name.rpartition(".")[0])} & {*modules} - {name} for name, file in modules.items()}
    assert "rkconvert.sources.gguf_file" in uses["rkconvert.sources.opening"]
    TopologicalSorter(uses).prepare()  # CycleError names the circle
