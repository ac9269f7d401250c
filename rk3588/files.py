"""Files that somebody else made: opened only where they are regular files of their own folder, read only so far.

A model's folder, an adapter's or a bundle may come from anywhere. A link in it may lead to a private key, and what
looks like a small file may be a FIFO, a device or a terabyte. Links of the Hugging Face hub's cache are what they
should be: ``snapshots/COMMIT/NAME`` leads to ``blobs/HASH`` of the same repository.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from .errors import BundleError, CheckpointError, RkError

MEGA = 1 << 20
# The most that each kind of file may have, many times what the largest known ones do.
SETTINGS, TOKENIZER, INDEX, TEXT, TEMPLATE = 16 * MEGA, 256 * MEGA, 128 * MEGA, 16 * MEGA, 2 * MEGA
_BLOCK = MEGA
_LONGEST_NAME = 255  # bytes, of nearly every file system
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
_followed: set[str] = set()


def follow_links(folder: Path) -> None:
    """From now on, links in ``folder`` may lead anywhere: whoever named it vouches for it (--follow-links)."""
    _followed.add(os.path.realpath(folder))


def is_name(text: object) -> bool:
    """Whether ``text``, out of an index or a manifest, can be the name of a file beside it."""
    if not isinstance(text, str) or text in ("", ".", "..") or "/" in text or "\0" in text:
        return False
    try:
        return len(text.encode("utf-8")) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def exists(path: Path) -> bool:
    """Whether something lies at ``path``: a link that leads nowhere is something, too."""
    return os.path.lexists(path)


def check(path: Path, folder: Optional[Path], kind: type[RkError], most: Optional[int] = None) -> None:
    """``kind`` unless ``path`` is what ``opened`` would open; FileNotFoundError where it leads nowhere."""
    with opened(path, folder, kind, most):
        pass


@contextmanager
def opened(path: Path, folder: Optional[Path], kind: type[RkError], most: Optional[int] = None) -> Iterator[io.FileIO]:
    """``path``, a regular file of at most ``most`` bytes that lies in ``folder``; else ``kind`` says what it is.

    ``folder`` is None for a file that the user named: that may be a link to anywhere. FileNotFoundError is the
    caller's to explain.
    """
    real = path if folder is None else _inside(path, folder, kind)
    try:
        # Before it is opened: that alone makes some devices do something.
        _check_kind(Path(real).stat(), path, folder, kind)
        # Without O_NONBLOCK a FIFO waits for somebody to write; without O_NOFOLLOW a link may be put there meanwhile.
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if folder else 0))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {_short(path)}: {_reason(error)}") from error
    try:
        size = _check_kind(os.fstat(fd), path, folder, kind)
        if most is not None and size > most:
            raise kind(_too_large(path, size, most))
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
            yield file
    finally:
        os.close(fd)


def _check_kind(found: os.stat_result, path: Path, folder: Optional[Path], kind: type[RkError]) -> int:
    """The size of what is a regular file."""
    if not stat.S_ISREG(found.st_mode):
        what = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
        advice = "give the path of a file" if folder is None else "put the file there"
        raise kind(f"{path} is {what}, where a file is expected: {advice}")
    return found.st_size


def read_bytes(path: Path, most: int, folder: Optional[Path], kind: type[RkError]) -> bytes:
    """All of a file. ``most`` holds for one that says it is empty and never ends as well, as those of /proc may."""
    with opened(path, folder, kind, most) as file:
        blocks, left = [], most + 1
        try:
            while left and (block := file.read(min(_BLOCK, left))):
                blocks.append(block)
                left -= len(block)
        except OSError as error:
            raise kind(f"cannot read {path}: {_reason(error)}") from error
    if not left:
        raise kind(_too_large(path, most + 1, most))
    return b"".join(blocks)


def read_text(path: Path, most: int, folder: Optional[Path], kind: type[RkError]) -> str:
    """A text in UTF-8, its lines ended as Python ends them."""
    raw = read_bytes(path, most, folder, kind)
    try:
        return raw.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is not a text in UTF-8 (byte {error.start}): save it as one") from error


def read_json(path: Path, most: int, folder: Optional[Path], kind: type[RkError]) -> Any:
    raw = read_bytes(path, most, folder, kind)
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise kind(f"cannot read {path}: {error}") from error


def copy(path: Path, target: Path, most: int, folder: Optional[Path], kind: type[RkError]) -> None:
    """The file's contents, never a link, to ``target``."""
    target.write_bytes(read_bytes(path, most, folder, kind))


def _inside(path: Path, folder: Path, kind: type[RkError]) -> str:
    """The true path of ``path``; ``kind`` where links lead it out of ``folder``."""
    try:
        root, real = os.path.realpath(folder), os.path.realpath(path)
    except (OSError, ValueError) as error:
        raise kind(f"cannot read {_short(path)}: {_reason(error)}") from error
    if os.path.commonpath((root, real)) == root or root in _followed or _is_blob(root, real):
        return real
    advice = {
        CheckpointError: "put the file itself there, or give --follow-links where the link is your own",
        BundleError: "copy the bundle with its files (cp -rL)",
    }.get(kind, "put the file itself there")
    raise kind(f"{path} is a link that leaves its folder (to {real}): {advice}")


def _is_blob(root: str, real: str) -> bool:
    """Whether ``root`` lies in a snapshot in the hub's cache, and ``real`` is one of that repository's blobs."""
    snapshots = next((above for above in Path(root).parents if above.name == "snapshots"), None)
    return snapshots is not None and Path(real).parent == snapshots.parent / "blobs"


def _too_large(path: Path, size: int, most: int) -> str:
    return f"{path} has {size / 1e6:.1f} MB, where {most / 1e6:.0f} MB are the most: is it what its name says?"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:300]}…"
