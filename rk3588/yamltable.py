"""YAML mappings that know their file and line, so that every error can name both and the nearest right name.

Used for the catalogue of boards, the user's inventory and the daemon's settings. Only plain scalars, lists and
mappings are taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from .errors import BoardError
from .nearest import nearest

_STR, _INT, _FLOAT, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "null"))


@dataclass(frozen=True)
class Table:
    """A mapping at a place in a file; ``what`` names it in errors, as in ``host 'kitchen'``."""

    file: Path
    node: yaml.MappingNode
    what: str

    def __iter__(self) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Each key with its own node and its value's."""
        for key, value in self.node.value:
            yield str(key.value), key, value

    def fail(self, node: yaml.Node | None, message: str) -> NoReturn:
        raise BoardError(f"{self.file}, line {(node or self.node).start_mark.line + 1}: {message}")

    def only(self, known: Iterable[str]) -> Table:
        """This table, once it is sure that it has no key but the known ones."""
        names = list(known)
        for name, key, _ in self:
            if name not in names:
                self.fail(key, f"unknown key {name!r} in {self.what}: {nearest(name, names)}")
        return self

    def node_of(self, key: str) -> yaml.Node | None:
        """The value's node; None where the key is absent or null."""
        for name, _, value in self:
            if name == key:
                return None if value.tag == _NULL else value
        return None

    def table(self, key: str, what: str | None = None) -> Table | None:
        node = self.node_of(key)
        return None if node is None else self.as_table(node, what or f"{key!r} of {self.what}")

    def as_table(self, node: yaml.Node, what: str) -> Table:
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} has to be a mapping, one `key: value` a line")
        return type(self)(self.file, node, what)._checked()

    def text(self, key: str) -> str | None:
        node = self.node_of(key)
        return None if node is None else self.as_text(node, key)

    def whole(self, key: str, low: int, high: int) -> int | None:
        node = self.node_of(key)
        return None if node is None else self.as_whole(node, key, low, high)

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(self.as_text(node, key) for node in self.items(key))

    def wholes(self, key: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.as_whole(node, key, low, high) for node in self.items(key))

    def items(self, key: str) -> list[yaml.Node]:
        """The values of a list; empty where the key is absent."""
        node = self.node_of(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"{key!r} of {self.what} has to be a list, as in {key}: [a, b]")
        return list(node.value)

    def need(self, key: str) -> yaml.Node:
        node = self.node_of(key)
        if node is None:
            self.fail(None, f"{self.what} has no {key!r}")
        return node

    def as_text(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag != _STR:
            hint = f'; put it in quotes: "{node.value}"' if isinstance(node, yaml.ScalarNode) else ""
            self.fail(node, f"{key!r} of {self.what} has to be text{hint}")
        value = str(node.value)
        if not value.strip() or any(ord(c) < 32 for c in value):
            self.fail(node, f"{key!r} of {self.what} is empty or has control characters in it")
        return value

    def as_whole(self, node: yaml.Node, key: str, low: int, high: int) -> int:
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        # Only decimals: YAML 1.1 reads 022 as octal and 2:30 as 150.
        if node.tag != _INT or not re.fullmatch(r"0|[1-9][0-9]{0,8}", text) or not low <= int(text) <= high:
            self.fail(node, f"{key!r} of {self.what} has to be a whole number from {low} to {high}")
        return int(text)

    def as_number(self, node: yaml.Node, key: str, low: float, high: float) -> float:
        text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
        if node.tag not in (_INT, _FLOAT) or not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            self.fail(node, f"{key!r} of {self.what} has to be a number")
        if not low <= float(text) <= high:
            self.fail(node, f"{key!r} of {self.what} has to be from {low:g} to {high:g}")
        return float(text)

    def _checked(self) -> Table:
        seen: dict[str, int] = {}
        for key, _ in self.node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (_STR, _INT):
                self.fail(key, f"{self.what} has a key that is not a plain name")
            if key.value in seen:
                self.fail(key, f"{key.value!r} stands in {self.what} twice, first in line {seen[key.value]}")
            seen[key.value] = key.start_mark.line + 1
        return self


_BOARDS = "`boards:` or `hosts:`"


def read(file: Path, expected: str = _BOARDS) -> tuple[str, Table]:
    """The file's text and its top-level mapping (an empty file is an empty one); BoardError with the line.

    ``expected`` says what should stand at the top, for a file that is no mapping.
    """
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise BoardError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BoardError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    return text, parse(text, file, expected)


def parse(text: str, file: Path, expected: str = _BOARDS) -> Table:
    """The top-level mapping of ``text``, said to come from ``file``."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise BoardError(f"{file}, {fault(error, text)}") from error
    except RecursionError as error:
        raise BoardError(f"{file} is nested too deeply") from error
    if node is None:
        node = yaml.MappingNode("tag:yaml.org,2002:map", [], yaml.Mark(str(file), 0, 0, 0, None, 0))
    if not isinstance(node, yaml.MappingNode):
        raise BoardError(f"{file}, line {node.start_mark.line + 1}: expected {expected}, found something else")
    return Table(file, node, "the file")._checked()


def fault(error: yaml.YAMLError, text: str) -> str:
    """Where ``text`` is no YAML, and why: without the parser's own lines and arrows."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: a character that YAML does not allow"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"not valid YAML: {error}"
    mark = error.problem_mark or error.context_mark
    return f"line {mark.line + 1 if mark else 1}: not valid YAML: {error.problem or error.context}"
