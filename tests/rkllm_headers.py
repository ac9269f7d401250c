"""What our headers of RKLLM lay down, release by release, as a C compiler sees it.

``python -m tests.rkllm_headers`` writes tests/data/rkllm/RELEASE.json anew: each struct's size, the offset, size and C
type of each of its fields (those of structs inside under ``outer.inner``), enumerators, and functions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

INCLUDE = ROOT / "runtime" / "sim" / "include"
TABLES = ROOT / "tests" / "data" / "rkllm"
# What the twin of each release is compiled with, by the release that it says it is.
HEADERS = {
    "1.1.1": INCLUDE / "rkllm.h", **{v: INCLUDE / v / "rkllm.h" for v in ("1.2.0", "1.2.3", "1.3.1")}
}  # fmt: skip
_FIELD = re.compile(r"(?P<type>.+?[\s*])(?P<name>\w+)(?P<array>\[\d+\])?$")


def source(release: str) -> str:
    """The header's text without comments and preprocessor."""
    text = re.sub(r"/\*.*?\*/", "", HEADERS[release].read_text(), flags=re.DOTALL)
    return re.sub(r"^#.*(\\\n.*)*$", "", text, flags=re.MULTILINE)


def fields(body: str) -> list[tuple[str, str]]:
    """Path and C type of each field of a struct's body; a struct in it without a type's name is walked through."""
    found: list[tuple[str, str]] = []
    while body := body.strip():
        inner = re.match(r"(?:struct|union) \{(.*?)\}\s*(\w*)\s*;", body, re.DOTALL)
        if inner:
            outer = inner[2]
            if outer:
                found.append((outer, "struct"))
            found += [(f"{outer}.{path}" if outer else path, kind) for path, kind in fields(inner[1])]
            body = body[inner.end() :]
            continue
        declaration, _, body = body.partition(";")
        match = _FIELD.match(" ".join(declaration.split()))
        assert match, declaration
        found.append((match["name"], match["type"].strip() + (match["array"] or "")))
    return found


def structs(release: str) -> dict[str, list[tuple[str, str]]]:
    found = re.findall(r"^typedef struct \{\n(.*?)^\} (\w+);", source(release), re.DOTALL | re.MULTILINE)
    return {name: fields(body) for body, name in found}


def functions(release: str) -> dict[str, str]:
    """Each declaration by the function's name."""
    found = re.findall(r"^\w[^;{}]*?(rkllm_\w+)\([^;]*\);", source(release), re.MULTILINE)
    whole = {name: re.search(rf"^\w[^;{{}}]*?{name}\([^;]*\);", source(release), re.MULTILINE) for name in found}
    return {name: " ".join(match[0].split()) for name, match in whole.items() if match}


def callbacks(release: str) -> dict[str, str]:
    found = re.finditer(r"^typedef \w+ \(\*(\w+)\)\([^;]*\);", source(release), re.MULTILINE)
    return {match[1]: " ".join(match[0].split()) for match in found}


def enumerators(release: str) -> list[str]:
    return re.findall(r"\b(RKLLM_[A-Z_]+) = \d", source(release))


def probe(release: str) -> str:
    """A C program that prints the table's numbers as JSON."""
    lines = ["#include <stdio.h>", "#include <rkllm.h>", "int main(void) {", '  printf("{\\"structs\\": {");']
    separator = ""
    for name, members in structs(release).items():
        lines.append(f'  printf("{separator}\\"{name}\\": {{\\"size\\": %zu, \\"fields\\": {{", sizeof({name}));')
        for i, (path, _) in enumerate(members):
            member = f"(({name} *)0)->{path}"
            lines.append(
                f'  printf("{", " if i else ""}\\"{path}\\": [%zu, %zu]", offsetof({name}, {path}), sizeof({member}));'
            )
        lines.append('  printf("}}");')
        separator = ", "
    lines.append('  printf("}, \\"enums\\": {");')
    for i, name in enumerate(enumerators(release)):
        lines.append(f'  printf("{", " if i else ""}\\"{name}\\": %d", (int){name});')
    lines += ['  printf("}}\\n");', "  return 0;", "}"]
    return "\n".join(lines) + "\n"


def table(release: str, compiler: tuple[str, ...] = ("cc", "-x", "c", "-std=c11")) -> dict[str, Any]:
    """What a compiler makes of the header: compiled and run here."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probe"
        command = [*compiler, "-Wall", "-Wextra", "-Werror", f"-I{HEADERS[release].parent}"]
        subprocess.run([*command, "-", "-o", str(program)], input=probe(release), text=True, check=True)
        numbers: dict[str, Any] = json.loads(subprocess.check_output([program]))
    for name, members in structs(release).items():
        laid = numbers["structs"][name]["fields"]
        numbers["structs"][name]["fields"] = {
            path: {"offset": laid[path][0], "size": laid[path][1], "type": kind} for path, kind in members
        }
    return {"release": release, **numbers, "functions": functions(release), "callbacks": callbacks(release)}


def committed(release: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TABLES / f"{release}.json").read_text())
    return found


if __name__ == "__main__":
    for each in HEADERS:
        (TABLES / f"{each}.json").write_text(json.dumps(table(each), indent=1) + "\n")
        print(f"wrote {TABLES / each}.json", file=sys.stderr)
