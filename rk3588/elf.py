"""What a shared library exports, read out of its file: nothing of it is loaded, and no length or offset is believed.

It goes the dynamic loader's own way (segments, dynamic table, hash table), so that a stripped library, which has no
sections, is read like any other.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from .errors import LibraryError

MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_LOAD, _DYNAMIC = 1, 2  # kinds of segments
_NULL, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _GNU_HASH = 0, 4, 5, 6, 10, 11, 0x6FFFFEF5
_TABLES = {_HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _GNU_HASH}
_SYMBOL = 24
# The most that is looked at; a large C++ library has some ten thousand symbols.
_MOST_SEGMENTS, _MOST_ENTRIES, _MOST_SYMBOLS, _LONGEST_NAME = 256, 1024, 1 << 20, 256


class Damaged(Exception):
    """What is wrong, as the end of a sentence that begins with the file."""


class Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int  # in the file


def machine(data: bytes, where: Any) -> str:
    """The processor that a shared library is for; LibraryError if it is none of 64 bits."""
    if data[:4] != b"\x7fELF" or len(data) < 20:
        raise LibraryError(f"{where} is not a shared library: give the path of a librkllmrt.so")
    number = int.from_bytes(data[18:20], "little")
    name = MACHINES.get(number, f"machine {number}")
    if data[4] != 2 or data[5] != 1:
        raise LibraryError(f"{where} is built for {name} with 32 bits or big-endian: fetch the one for aarch64")
    return name


def exported(data: bytes, prefix: str, where: Any) -> frozenset[str]:
    """The names with ``prefix`` that the library ``data`` lets others call; LibraryError for a damaged one."""
    try:
        return frozenset(_exported(data, prefix.encode()))
    except Damaged as error:
        raise LibraryError(f"{where} {error}: fetch it again") from error


def _unpack(data: bytes, layout: str, offset: int) -> tuple[Any, ...]:
    if offset < 0 or offset + struct.calcsize(layout) > len(data):
        raise Damaged(f"is damaged: it points beyond its end, at {len(data)} bytes")
    return struct.unpack_from(layout, data, offset)


def _exported(data: bytes, prefix: bytes) -> set[str]:
    segments = _segments(data)
    table = _dynamic_table(data, segments)
    if _SYMTAB not in table or _STRTAB not in table:
        raise Damaged("is damaged: it has no symbol table")
    if table.get(_SYMENT, _SYMBOL) != _SYMBOL:
        raise Damaged(f"is damaged: its symbols have {table[_SYMENT]} bytes, {_SYMBOL} are usual")
    symbols = _offset(segments, table[_SYMTAB])
    names = _offset(segments, table[_STRTAB])
    end = min(names + table.get(_STRSZ, 0), len(data))
    found = set()
    for number in range(_count(data, segments, table)):
        name, info, other, section = _unpack(data, "<IBBH", symbols + number * _SYMBOL)
        is_global, is_open = info >> 4 in (1, 2), other & 3 in (0, 3)
        at = names + name
        if section and is_global and is_open and data.startswith(prefix, at):
            stop = data.find(b"\0", at, min(at + _LONGEST_NAME, end))
            if stop < 0:
                raise Damaged("is damaged: a name in it has no end")
            found.add(data[at:stop].decode("ascii", "replace"))
    return found


def _segments(data: bytes) -> list[Segment]:
    (kind,) = _unpack(data, "<H", 16)
    if kind != 3:
        raise Damaged("is a program or an object file, not a shared library")
    (offset,) = _unpack(data, "<Q", 32)
    size, count = _unpack(data, "<HH", 54)
    if size < 56 or not 0 < count <= _MOST_SEGMENTS:
        raise Damaged(f"is damaged: it says that it has {count} segments, described in {size} bytes each")
    found = []
    for at in range(offset, offset + size * count, size):
        if at + 56 > len(data):
            raise Damaged(f"is cut off at {len(data)} bytes")
        kind, _flags, start, address, _, length = _unpack(data, "<IIQQQQ", at)
        if start + length > len(data):
            raise Damaged(f"is cut off at {len(data)} bytes")
        found.append(Segment(kind, start, address, length))
    return found


def _dynamic_table(data: bytes, segments: list[Segment]) -> dict[int, int]:
    table: dict[int, int] = {}
    dynamic = next((each for each in segments if each.kind == _DYNAMIC), None)
    if dynamic is None:
        raise Damaged("is damaged: it has no dynamic table")
    for at in range(dynamic.offset, dynamic.offset + min(dynamic.size, 16 * _MOST_ENTRIES) - 15, 16):
        tag, value = _unpack(data, "<QQ", at)
        if tag == _NULL:
            break
        if tag in _TABLES:
            table[tag] = value
    return table


def _offset(segments: list[Segment], address: int) -> int:
    """Where in the file lies what will be at ``address``."""
    for each in segments:
        if each.kind == _LOAD and each.address <= address < each.address + each.size:
            return address - each.address + each.offset
    raise Damaged(f"is damaged: nothing of it is at the address {address:#x}, to which it points")


def _count(data: bytes, segments: list[Segment], table: dict[int, int]) -> int:
    """How many symbols there are: only the hash tables say."""
    if _HASH in table:
        _buckets, count = _unpack(data, "<II", _offset(segments, table[_HASH]))
    elif _GNU_HASH in table:
        count = _count_gnu(data, _offset(segments, table[_GNU_HASH]))
    else:
        raise Damaged("is damaged: it has no hash table of symbols")
    if count > _MOST_SYMBOLS:
        raise Damaged(f"is damaged: it says that it has {count} symbols")
    return int(count)


def _count_gnu(data: bytes, at: int) -> int:
    """The last bucket's chain ends with the last symbol."""
    buckets, first, bloom, _shift = _unpack(data, "<IIII", at)
    if buckets > _MOST_SYMBOLS or bloom > _MOST_SYMBOLS:
        raise Damaged(f"is damaged: it says that its hash table has {buckets} buckets")
    chains_at = at + 16 + 8 * bloom + 4 * buckets
    last = max(_unpack(data, f"<{buckets}I", at + 16 + 8 * bloom), default=0)
    if last < first:
        return int(first)
    for number in range(last, _MOST_SYMBOLS):
        (hash_,) = _unpack(data, "<I", chains_at + 4 * (number - first))
        if hash_ & 1:
            return int(number) + 1
    raise Damaged("is damaged: its hash table has no end")
