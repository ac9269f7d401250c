"""Which package may import which, and that no module imports itself by way of others: read from the sources alone."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.fakes import ROOT

CORE = "rk3588"  # imports neither of the others, which import it and not each other
PACKAGES = {
    CORE: ROOT / "rk3588",
    "rkconvert": ROOT / "convert" / "rkconvert",
    "rkruntime": ROOT / "runtime" / "rkruntime",
}
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(tree: ast.Module, name: str, is_package: bool, lazily: bool) -> Iterator[str]:
    """Full names of what a module imports; ``lazily``: inside its functions as well. Not what is for types only."""
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".") if is_package else name.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{each.name}" for each in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        elif lazily or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def graph(lazily: bool) -> Graph:
    there = modules()
    found: Graph = {}
    for name, path in there.items():
        wanted = set(imports(parsed(path), name, path.name == "__init__.py", lazily))
        found[name] = {each for each in wanted if each in there and each != name}
        # A package that is imported for a module of it is no use of what the package imports.
        found[name] -= {each for each in wanted if any(other.startswith(f"{each}.") for other in found[name])}
    return found


def circles(edges: Graph) -> list[list[str]]:
    """One circle for each module on one, by depth-first search."""
    found, done = [], set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(path[path.index(name) :])
        elif name not in done:
            for other in sorted(edges[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles(graph(lazily=False)) == []
    assert circles(graph(lazily=True)) == []


def test_the_core_imports_neither_side_and_the_sides_not_each_other() -> None:
    wrong = {
        (name, other)
        for name, others in graph(lazily=True).items()
        for other in others
        if other.partition(".")[0] not in (name.partition(".")[0], CORE)
    }
    assert wrong == set()


def test_circles_and_imports_inside_functions_are_seen() -> None:
    edges: Graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert circles(edges) == [["b", "c"]]
    source = "import x.y\nfrom . import z\nif TYPE_CHECKING:\n    from .. import t\ndef f():\n    from ..u import v\n"
    tree = ast.parse(source)
    assert set(imports(tree, "p.q.m", False, False)) == {"x.y", "p.q", "p.q.z"}
    assert set(imports(tree, "p.q.m", False, True)) == {"x.y", "p.q", "p.q.z", "p.u", "p.u.v"}
    assert "p.q.z" in set(imports(tree, "p.q", True, False))
