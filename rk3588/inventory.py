"""Add a host to the user's ``hosts.yaml``, or take one away: the text around it, comments too, stays as it is."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, Union

import yaml

from .boards import NAME, Boards, catalogue, extend, host_from
from .errors import BoardError, TargetError, UsageError
from .nearest import nearest
from .yamltable import Table, parse, read

Value = Union[str, int, float, list[str]]


class _Arguments(Table):
    """A host given on the command line: what is wrong with it is the caller's, and has no line."""

    def fail(self, node: yaml.Node | None, message: str) -> NoReturn:  # noqa: ARG002
        raise UsageError(message)


def add_host(file: Path, name: str, fields: Mapping[str, Value]) -> Boards:
    """Write host ``name`` with ``fields`` (keys of ``hosts.yaml``) into ``file``; returns all there is then."""
    text, top = read(file) if file.exists() else ("", parse("", file))
    before = extend(catalogue(), top, file)
    if not NAME.fullmatch(name):
        raise UsageError(f"host {name!r}: names have small letters, digits, dots and dashes only")
    if name in before.hosts:
        raise UsageError(f"host {name!r} is in {file} already: choose another name, or change it there")
    _check(name, fields, before)
    changed = _with_host(text, top, name, fields)
    # The proof that the text was put in its place: the same hosts as before, and the new one.
    try:
        after = extend(catalogue(), parse(changed, file), file)
        right = dict(after.hosts) == {**before.hosts, name: after.hosts.get(name)}
    except BoardError:
        right = False
    if not right:
        entry = f"{name}: {_inline_yaml(dict(fields))}"
        raise BoardError(f"{file} is written in a way this cannot add to: put `{entry}` below its `hosts:` yourself")
    _write(file, changed)
    return after


def remove_host(file: Path, name: str) -> Boards:
    """Take host ``name`` out of ``file``; returns all there is then."""
    text, top = read(file)
    before = extend(catalogue(), top, file)
    if name not in before.hosts:
        raise UsageError(f"there is no host {name!r} in {file}: {nearest(name, before.hosts)}")
    through = [host.name for host in before.hosts.values() if host.jump == name]
    if through:
        raise UsageError(f"host {through[0]!r} is reached through {name!r}: change its `jump` in {file} first")
    hosts = top.node_of("hosts")
    assert isinstance(hosts, yaml.MappingNode)
    key, value = next((key, value) for key, value in hosts.value if key.value == name)
    lines = text.splitlines(keepends=True)
    changed = "".join([*lines[: key.start_mark.line], *lines[_line_after(value) :]])
    try:
        after = extend(catalogue(), parse(changed, file), file)
        right = {**after.hosts, name: before.hosts[name]} == dict(before.hosts) and name not in after.hosts
    except BoardError:
        right = False
    if not right:
        raise BoardError(f"{file} is written in a way this cannot take from: remove {name!r} from it yourself")
    _write(file, changed)
    return after


def _line_after(node: yaml.Node) -> int:
    """The line after a value: without what follows it, comments too."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
    # A block scalar ends at the start of the line after it.
    return node.end_mark.line + (1 if node.end_mark.column else 0)


def _check(name: str, fields: Mapping[str, Value], known: Boards) -> None:
    node = yaml.compose(yaml.safe_dump(dict(fields)), Loader=yaml.SafeLoader)
    assert isinstance(node, yaml.MappingNode)
    host = host_from(name, _Arguments(Path(), node, f"host {name!r}"), known.boards)
    if name in known.boards and known.boards[name] is not host.board:
        raise UsageError(f"host {name!r} has the name of a board type but is one of {host.board.id}: choose another")
    if host.jump == name:
        raise UsageError(f"host {name!r} cannot be its own jump host")


def _inline_yaml(value: object) -> str:
    """A value as YAML on one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=1 << 20, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def _entry(name: str, fields: Mapping[str, Value], indent: str) -> str:
    lines = [f"{indent}{name}:"]
    lines += [f"{indent}  {key}: {_inline_yaml(value)}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


def _with_host(text: str, top: Table, name: str, fields: Mapping[str, Value]) -> str:
    if text and not text.endswith("\n"):
        text += "\n"
    hosts = top.node_of("hosts")
    if hosts is None:
        key = next((key for found, key, _ in top if found == "hosts"), None)
        if key is None:
            return f"{text}hosts:\n{_entry(name, fields, '  ')}"
        return _inserted(text, key.start_mark.line + 1, _entry(name, fields, "  "))
    line = _line_after(hosts)
    first = hosts.value[0][0] if hosts.value else None
    return _inserted(text, line, _entry(name, fields, " " * (first.start_mark.column if first else 2)))


def _inserted(text: str, line: int, entry: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:line], entry, *lines[line:]])


def _write(file: Path, text: str) -> None:
    """Into a file beside it, then in its place: never half a file."""
    target = file.resolve()  # a symlink stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise TargetError(f"cannot write {file}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(text.encode("utf-8"))
            os.fsync(out.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        Path(temporary).replace(target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise TargetError(f"cannot write {file}: {error.strerror}") from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
