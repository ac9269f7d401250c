"""What the text of a chat template tells without Jinja: which variables it reads, and whether it shows tools.

The daemon's supervisor renders no template and needs no Jinja. All of it takes time that is linear in the text.
"""

from __future__ import annotations

import re

_BEGIN = re.compile(r"\{[{%#]")
_TOKEN = re.compile(r"""[%}]\}|"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?""", re.DOTALL)
# Phi-4-mini's reads tools off the system message.
TOOLS_OF_A_MESSAGE = re.compile(r"""\bmessage(?:\.tools\b|\[['"]tools['"]\])""")


def code(template: str) -> str:
    """What stands between ``{{`` and ``}}``, ``{%`` and ``%}``; texts in it are emptied."""
    parts: list[str] = []
    at = 0
    while begin := _BEGIN.search(template, at):
        at = begin.end()
        if begin.group() == "{#":
            end = template.find("#}", at)
            at = end + 2 if end >= 0 else len(template)
            continue
        at = _to_the_end(template, at, parts)
        parts.append("\n")
    return "".join(parts)


def _to_the_end(template: str, at: int, parts: list[str]) -> int:
    for token in _TOKEN.finditer(template, at):
        parts.append(template[at : token.start()])
        at = token.end()
        if token.group() in ("%}", "}}"):
            return at
        parts.append('""')
    parts.append(template[at:])
    return len(template)


def reads(code_of_template: str, variable: str) -> bool:
    """Whether it reads a variable of that name, which is no other's field."""
    return re.search(rf"(?<![\w.]){variable}\b", code_of_template) is not None


def shows_tools(template: str) -> bool:
    """Whether the model is told of tools: SmolLM3's template calls them ``xml_tools``."""
    found = code(template)
    return reads(found, "tools") or reads(found, "xml_tools") or TOOLS_OF_A_MESSAGE.search(template) is not None
