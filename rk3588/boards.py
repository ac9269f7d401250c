"""Board types and the user's own boards: ``boards.yaml`` of the package, ``hosts.yaml`` of the user.

Both have the same form and are read by the same code. ``hosts.yaml`` is looked for in the project folder (the current
one), then in ``~/.config/rk3588/``; the first found counts, but a host that is another in the other is refused. Every
error names file, line and the nearest right name.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from . import resources
from .errors import BoardError, UsageError
from .nearest import nearest
from .yamltable import Table, parse, read

HOSTS = "hosts.yaml"
VARIABLE = "RK3588_HOSTS"
COMMON_COMPATIBLE = "rockchip,rk3588"  # the vendor's kernel says so of every board, RK3588S too

_SOC_KEYS = ("npu_cores", "ddr_gb_s")
_BOARD_KEYS = ("name", "soc", "compatible", "models", "ram_gb", "bandwidth_gb_s", "notes")
_HOST_KEYS = ("board", "address", "user", "port", "key", "jump", "groups", "ram_gb", "bandwidth_gb_s")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# Nothing that begins with a dash: an address must never be read as an option.
_ADDRESS = re.compile(r"[A-Za-z0-9_:\[][A-Za-z0-9_.:%\[\]-]*")
_WITH_MEMORY = re.compile(r"(.+?)[-_ ]?(\d{1,3})[-_ ]?gi?b?", re.IGNORECASE)  # orange-pi-5-8gb
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?")
_JUMP = re.compile(rf"(?:{_USER.pattern}@)?{_ADDRESS.pattern}")


@dataclass(frozen=True)
class Soc:
    """A chip. ``ddr_gb_s``: memory clock in MHz to the lowest and the highest GB/s that decoding was seen to get."""

    name: str
    npu_cores: int
    ddr_gb_s: Mapping[int, tuple[float, float]]

    def bandwidth(self, mhz: int) -> tuple[float, float]:
        """Lowest and highest GB/s at ``mhz``: straight lines between the known clocks, in proportion outside them."""
        clocks = sorted(self.ddr_gb_s)
        end = min(max(mhz, clocks[0]), clocks[-1])
        above = next(clock for clock in clocks if clock >= end)
        below = max(clock for clock in clocks if clock <= end)
        share = (end - below) / (above - below) if above > below else 0.0
        low, high = (a + (b - a) * share for a, b in zip(self.ddr_gb_s[below], self.ddr_gb_s[above]))
        return low * mhz / end, high * mhz / end


@dataclass(frozen=True)
class BoardType:
    """A type of board. ``compatible`` and ``models`` are what the device tree may say of it; RAM options in GiB.

    ``bandwidth_gb_s``: what decoding gets of its memory, where that is known to be another than the SoC's.
    """

    id: str
    name: str
    soc: Soc
    compatible: tuple[str, ...]
    models: tuple[str, ...]
    ram_gb: tuple[int, ...]
    notes: str | None
    bandwidth_gb_s: float | None = None

    def with_ram(self, gb: int) -> BoardType:
        """The one with so much; UsageError where it is not sold so."""
        if gb not in self.ram_gb:
            raise UsageError(f"--ram {gb}: the {self.name} has {', '.join(map(str, self.ram_gb))} GB")
        return replace(self, ram_gb=(gb,))


@dataclass(frozen=True)
class Host:
    """One board of the user's. What is None is left to ssh's own configuration; of its memory, it is not said."""

    name: str
    board: BoardType
    address: str
    user: str | None
    port: int
    key: Path | None
    jump: str | None
    groups: tuple[str, ...]
    ram_gb: int | None
    bandwidth_gb_s: float | None = None  # as measured on this one


@dataclass(frozen=True)
class Boards:
    """Everything known: the catalogue, and the inventory laid over it. ``file`` is the inventory's, where one was.

    ``instead_of``: the user's own file, where the project's counts; ``ambiguous``: hosts that are others there.
    """

    socs: Mapping[str, Soc]
    boards: Mapping[str, BoardType]
    hosts: Mapping[str, Host] = field(default_factory=dict)
    file: Path | None = None
    instead_of: Path | None = None
    ambiguous: frozenset[str] = frozenset()

    def board(self, name: str) -> BoardType:
        """A board type, by its own name or by a host's, then with what is known of the host's own memory.

        UsageError with the nearest right name.
        """
        if name in self.hosts:
            host = self.host(name)
            return replace(
                host.board,
                ram_gb=(host.ram_gb,) if host.ram_gb else host.board.ram_gb,
                bandwidth_gb_s=host.bandwidth_gb_s or host.board.bandwidth_gb_s,
            )
        found = self.type_named(name)
        if found:
            return found
        base, ram = self.with_memory(name)
        if base:
            raise UsageError(
                f"unknown board {name!r}: the type is {base!r}; a memory of {ram} GB is said apart, as in "
                f"rk3588 predict MODEL --board {base} --ram {ram}"
            )
        raise UsageError(f"unknown board {name!r}: {nearest(name, [*self.boards, *self.hosts])}")

    def type_named(self, name: str) -> BoardType | None:
        """A board type by its id, or by the name it is sold under."""
        if name in self.boards:
            return self.boards[name]
        return next((board for board in self.boards.values() if board.name.lower() == name.lower()), None)

    def with_memory(self, name: str) -> tuple[str, int]:
        """Type and GB of a name that has both in it, as ``orange-pi-5-8gb``; ("", 0) for others."""
        match = _WITH_MEMORY.fullmatch(name)
        found = self.type_named(match[1].lower()) if match else None
        return (found.id, int(match[2])) if match and found else ("", 0)

    def host(self, name: str) -> Host:
        """A board of the user's; UsageError with the nearest right name."""
        if name in self.ambiguous:
            raise UsageError(
                f"{name!r} is one board in {self.file} and another in {self.instead_of}: say which with --hosts FILE"
            )
        if name in self.hosts:
            return self.hosts[name]
        where = str(self.file) if self.file else f"no {HOSTS} was found"
        raise UsageError(f"unknown host {name!r} ({where}): {nearest(name, self.hosts)}")

    def identify(self, compatible: Sequence[str], model: str = "") -> BoardType | None:
        """The board whose device tree has these ``compatible`` entries (any may match) or calls itself ``model``."""
        for entry in compatible:
            for board in self.boards.values():
                if entry in board.compatible:
                    return board
        return next((board for board in self.boards.values() if model and model in board.models), None)


@functools.lru_cache(maxsize=1)
def catalogue() -> Boards:
    """The boards that ship with the package."""
    name = "boards.yaml"
    return extend(Boards({}, {}), parse(resources.read(name).decode("utf-8"), Path(name)))


def user_file() -> Path:
    """``hosts.yaml`` in the user's configuration folder, whether it is there or not."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "rk3588" / HOSTS


def find_inventory() -> Path | None:
    """The inventory that counts: ``RK3588_HOSTS``, the project folder's, the user's; None where there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(os.path.expanduser(named))  # noqa: PTH111 (Path's raises for ~nobody-here)
    return next((path for path in (Path(HOSTS), user_file()) if path.is_file()), None)


def load(file: Path | None = None) -> Boards:
    """Catalogue and inventory: of ``file``, else of the one that ``find_inventory`` finds, else none."""
    given, file = file is not None, file or find_inventory()
    if file is None:
        return catalogue()
    _, top = read(file)
    known = extend(catalogue(), top, file)
    own = user_file()
    if given or file != Path(HOSTS) or os.environ.get(VARIABLE) or not own.is_file() or own.samefile(file):
        return known
    return replace(known, instead_of=own, ambiguous=_ambiguous_hosts(known, own))


def _ambiguous_hosts(known: Boards, own: Path) -> frozenset[str]:
    """Hosts of the project's file that are others in the user's own."""
    try:
        mine = extend(catalogue(), read(own)[1], own).hosts
    except BoardError:
        return frozenset(known.hosts)  # nobody can tell
    return frozenset(name for name, host in known.hosts.items() if name in mine and mine[name] != host)


def extend(known: Boards, top: Table, file: Path | None = None) -> Boards:
    """``known`` with what the file ``top`` says added; BoardError for anything in it that is not right."""
    top.only(("socs", "boards", "hosts"))
    socs, boards = dict(known.socs), dict(known.boards)
    for name, _, node in top.table("socs", "'socs'") or ():
        socs[name] = _soc(name, top.as_table(node, f"SoC {name!r}").only(_SOC_KEYS))
    for name, key, node in top.table("boards", "'boards'") or ():
        if name in boards:
            top.fail(key, f"board {name!r} is in the catalogue already: choose another name")
        _name(top, key, name, "board")
        boards[name] = _board(name, top.as_table(node, f"board {name!r}").only(_BOARD_KEYS), socs, boards)
    hosts: dict[str, Host] = {}
    for name, key, node in top.table("hosts", "'hosts'") or ():
        _name(top, key, name, "host")
        hosts[name] = host_from(name, top.as_table(node, f"host {name!r}"), boards)
        if name in boards and boards[name] is not hosts[name].board:
            top.fail(key, f"host {name!r} has the name of a board type but is one of {hosts[name].board.id}: rename it")
    _check_jumps(top, hosts)
    return Boards(socs, boards, hosts, file)


def _name(table: Table, key: yaml.Node, name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        table.fail(key, f"{what} {name!r}: names have small letters, digits, dots and dashes only")


def _soc(name: str, table: Table) -> Soc:
    cores = table.as_whole(table.need("npu_cores"), "npu_cores", 1, 64)
    clocks = table.as_table(table.need("ddr_gb_s"), f"'ddr_gb_s' of SoC {name!r}")
    bandwidth = {}
    for clock, key, _ in clocks:
        mhz = clocks.as_whole(key, "a clock", 100, 10_000)
        pair = tuple(clocks.as_number(node, clock, 0.1, 1000) for node in clocks.items(clock))
        if len(pair) != 2 or pair[0] > pair[1]:
            clocks.fail(key, f"{clock!r} of {clocks.what} has to be the lowest and the highest GB/s, as in [21, 29]")
        bandwidth[mhz] = (pair[0], pair[1])
    if not bandwidth:
        clocks.fail(None, f"{clocks.what} names no clock, as in 2112: [21, 29]")
    return Soc(name, cores, bandwidth)


def _board(name: str, table: Table, socs: Mapping[str, Soc], boards: Mapping[str, BoardType]) -> BoardType:
    soc_node = table.need("soc")
    soc = table.as_text(soc_node, "soc")
    if soc not in socs:
        table.fail(soc_node, f"unknown SoC {soc!r} of {table.what}: {nearest(soc, socs)}")
    taken = {entry: board.id for board in boards.values() for entry in board.compatible}
    for node in table.items("compatible"):
        entry = table.as_text(node, "compatible")
        if entry == COMMON_COMPATIBLE or entry in taken:
            owner = taken.get(entry, "every board with the vendor's kernel")
            table.fail(node, f"'compatible' of {table.what}: {entry!r} is said by {owner} as well: leave it out")
    ram = table.wholes("ram_gb", 1, 1024)
    if not ram:
        table.fail(None, f"{table.what} has no 'ram_gb', the sizes it is sold with, as in [4, 8, 16]")
    return BoardType(
        id=name,
        name=table.text("name") or name,
        soc=socs[soc],
        compatible=table.texts("compatible"),
        models=table.texts("models"),
        ram_gb=tuple(sorted(ram)),
        notes=table.text("notes"),
        bandwidth_gb_s=_bandwidth(table),
    )


def host_from(name: str, table: Table, boards: Mapping[str, BoardType]) -> Host:
    """One host out of its entry."""
    table.only(_HOST_KEYS)
    board_node = table.need("board")
    board = table.as_text(board_node, "board")
    if board not in boards:
        base, ram = Boards({}, boards).with_memory(board)
        hint = f"did you mean {base!r}, with {ram} GB as its ram_gb?" if base else nearest(board, boards)
        table.fail(board_node, f"unknown board {board!r} of {table.what}: {hint}")
    key = table.text("key")
    return Host(
        name=name,
        board=boards[board],
        address=_matching(table, "address", _ADDRESS, "an address, such as 192.168.1.20 or kitchen.lan") or name,
        user=_matching(table, "user", _USER, "a user's name on the board"),
        port=table.whole("port", 1, 65535) or 22,
        key=Path(os.path.expanduser(key)) if key else None,  # noqa: PTH111
        jump=_matching(table, "jump", _JUMP, "a host of this file, or user@address:port"),
        groups=table.texts("groups"),
        ram_gb=table.whole("ram_gb", 1, 1024),
        bandwidth_gb_s=_bandwidth(table),
    )


def _bandwidth(table: Table) -> float | None:
    node = table.node_of("bandwidth_gb_s")
    return None if node is None else table.as_number(node, "bandwidth_gb_s", 0.1, 1000)


def _matching(table: Table, key: str, pattern: re.Pattern[str], what: str) -> str | None:
    value = table.text(key)
    if value is not None and not pattern.fullmatch(value):
        table.fail(table.node_of(key), f"{key!r} of {table.what} is {value!r}; it has to be {what}")
    return value


def _check_jumps(top: Table, hosts: Mapping[str, Host]) -> None:
    """A jump host that is reached through itself is a mistake, however long the way round."""
    for name, key, _ in top.table("hosts", "'hosts'") or ():
        way = [name]
        jump = hosts[name].jump
        while jump is not None and jump in hosts:
            if jump == name:
                top.fail(key, f"host {name!r} is reached through itself: {' → '.join([*way, jump])}")
            if jump in way:
                break  # a ring further on, which is named when its own turn comes
            way.append(jump)
            jump = hosts[jump].jump
