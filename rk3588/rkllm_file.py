"""A ``.rkllm``, as far as it can be told from outside: what is none, its LoRAs, and the toolkit that wrote it.

The format is Rockchip's and closed. What it is not shows at its beginning, and toolkits of today put their version
behind the end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .predict import Sizes
    from .quant import Scheme

SUFFIX = ".rkllm"
LORA_SUFFIX = "_lora"  # what rkllm-toolkit puts behind the name of an export for its adapter
HEAD, TAIL = 512, 64  # bytes that are looked at
LEAST = 1 << 20  # bytes: no language model is smaller
_MOST_TOLD = 60  # characters of a text that was taken for a model
_NONE = {
    b"GGUF": "a GGUF file",
    b"RKNN": "a .rknn, which is for Rockchip's other runtime (RKNN)",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program or a library",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text, as servers answer errors with",
    b"NOT AN RKLLM MODEL": "a test's stand-in for one",
}
# Reported of toolkit 1.3.1; what older ones end with is not known (lhxll07/rknn-llm-gui).
_VERSION = re.compile(rb"rkllm-toolkit version: (\d{1,3}(?:\.\d{1,3}){1,3}(?:b\d{1,3})?)(?![\w.])")


class Ends(NamedTuple):
    """The first and the last bytes of a file, and how many it has."""

    head: bytes
    tail: bytes
    size: int


def ends(path: Path) -> Ends:
    """Of the file at ``path``; OSError where it cannot be read."""
    with path.open("rb") as file:
        head, size = file.read(HEAD), file.seek(0, 2)
        file.seek(max(size - TAIL, 0))
        return Ends(head, file.read(TAIL), size)


def other_kind(head: bytes) -> str:
    """What begins so and is no .rkllm, for a sentence; "" where nothing speaks against one."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for magic, what in _NONE.items():
        if head.startswith(magic) or (magic.startswith(b"<") and start.lower().startswith(magic)):
            return what
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "a safetensors file"
    return ""


def problem(found: Ends) -> str:
    """Why a file is no model for an NPU, for a sentence that begins with its name; "" where nothing speaks against
    it."""
    if found.size == 0:
        return "is empty: the download that should have filled it failed"
    if what := other_kind(found.head):
        return f"is no .rkllm but {what}"
    if found.size < LEAST:
        text = found.head[:_MOST_TOLD].decode("ascii", "replace")
        said = f" ({text.strip()!r})" if text.isprintable() else ""
        return f"has {found.size} bytes{said}, which is no language model: a download that broke off"
    return ""


def toolkit_version(tail: bytes) -> str:
    """The version of rkllm-toolkit that a file ends with; "" where it does not say."""
    told = _VERSION.findall(tail)
    return told[-1].decode() if told else ""


def expected_size(sizes: Sizes, scheme: Scheme) -> int:
    """About what the model of this shape has: a byte for each weight of the layers and of lm_head, two for each of the
    embedding, which it keeps beside a tied lm_head, and ten a group.

    Sixteen files published for 0.5 to 13 billion parameters, of toolkits 1.0.1 to 1.1.4, have 0.99 to 1.02 of it, and
    three of 1.2 have 1.00 to 1.06.
    """
    weights = sizes.linear_params + sizes.lm_head_params
    return weights + 2 * sizes.lm_head_params + (10 * weights // scheme.group_size if scheme.group_size else 0)
