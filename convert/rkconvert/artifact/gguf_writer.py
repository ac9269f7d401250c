"""What stands in a GGUF file before its tensors' data, as bytes. rk3588/gguf.py is the reader of such files."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAGIC, VERSION = b"GGUF", 3
UINT32, INT32, FLOAT32, BOOL, STRING = 4, 5, 6, 7, 8  # the format's numbers of types of values
_ARRAY = 9
_CODES = {UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?"}  # struct's
TENSOR_KINDS = {"F32": 0, "F16": 1, "I8": 24, "I32": 26}  # ggml's numbers of types of tensors
Value = str | int | float | bool


class TensorInfo(NamedTuple):
    """``shape`` as NumPy has it, slowest side first; ``offset`` from the start of the tensors' data."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int


class Metadata:
    """Keys with their values, in the order they are added."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self.data = bytearray()

    @property
    def count(self) -> int:
        return len(self._keys)

    def add(self, key: str, kind: int, value: Value) -> int:
        """Returns where in ``data`` the value stands."""
        self._begin(key, kind)
        at = len(self.data)
        self.data += _packed(kind, [value])
        return at

    def add_list(self, key: str, kind: int, values: Sequence[Value]) -> None:
        """An empty list is left out."""
        if values:
            self._begin(key, _ARRAY)
            self.data += struct.pack("<IQ", kind, len(values)) + _packed(kind, values)

    def extend(self, other: Metadata) -> None:
        """Add all that ``other`` has."""
        if self._keys & other._keys:
            raise ValueError(f"keys of GGUF metadata given twice: {sorted(self._keys & other._keys)}")
        self._keys |= other._keys
        self.data += other.data

    def _begin(self, key: str, kind: int) -> None:
        if key in self._keys:
            raise ValueError(f"a key of GGUF metadata given twice: {key}")
        self._keys.add(key)
        self.data += _text(key) + struct.pack("<I", kind)


def header(metadata: Metadata, tensors: Iterable[TensorInfo]) -> bytearray:
    """Everything up to the padding before the tensors' data. The metadata begin at ``METADATA_AT``."""
    infos = [
        _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), TENSOR_KINDS[kind], offset)
        for name, kind, shape, offset in tensors
    ]
    start = MAGIC + struct.pack(_COUNTS, VERSION, len(infos), metadata.count)
    return bytearray(start + metadata.data + b"".join(infos))


_COUNTS = "<IQQ"  # the format's version, how many tensors, how many keys
METADATA_AT = len(MAGIC) + struct.calcsize(_COUNTS)


def _packed(kind: int, values: Sequence[Value]) -> bytes:
    if kind == STRING:
        return b"".join(_text(str(value)) for value in values)
    return struct.pack(f"<{len(values)}{_CODES[kind]}", *values)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
