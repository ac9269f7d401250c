"""What the converter writes files with: SHA-256 side by side, past the page cache where that is possible."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import hostlib, quant
from rk3588.errors import CheckpointError
from rkconvert.artifact import direct_file, pipeline
from rkconvert.artifact.direct_file import DirectFile
from rkconvert.artifact.sha256 import Sha256, update_together
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import models
from tests.plans import make_plan

SIZES = st.one_of(st.integers(0, 3).map(lambda n: 64 * n), st.integers(0, 300))


def some(size: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@pytest.fixture(params=["as it is here", "hashlib"], scope="module")
def hashing(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "hashlib":
            patch.setattr(hostlib, "has_sha256", lambda: False)
        yield


@pytest.mark.usefixtures("hashing")
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), SIZES), max_size=6), max_size=6))
def test_messages_hashed_side_by_side(rounds: list[list[tuple[int, int]]]) -> None:
    """Any number of them, in pieces of any length, some several times in a call and some not at all."""
    messages, plain = [Sha256() for _ in range(5)], [hashlib.sha256() for _ in range(5)]
    for pieces in rounds:
        update_together([(messages[which], some(size, which)) for which, size in pieces])
        for which, size in pieces:
            plain[which].update(some(size, which).data)
    assert [m.hexdigest() for m in messages] == [p.hexdigest() for p in plain]


def test_long_messages_hashed_side_by_side() -> None:
    data = [some(size, size) for size in (1 << 20, 70_001, 64 * 999, 63, 1 << 18)]
    messages = [Sha256() for _ in data]
    update_together(zip(messages, data, strict=True))
    assert [m.hexdigest() for m in messages] == [hashlib.sha256(d.data).hexdigest() for d in data]


@given(st.integers(0, 1000), st.integers(0, 16))
def test_crc32_is_that_of_zlib(size: int, start: int) -> None:
    data = some(size + start)[start:]
    assert hostlib.crc32(data) == zlib.crc32(data.data)


def test_crc32_of_much() -> None:
    data = some((1 << 20) + 77)
    assert hostlib.crc32(data) == zlib.crc32(data.data)


def written(path: Path, pieces: list[int]) -> bytes:
    """What a DirectFile makes of pieces of these lengths; compared with what it was given."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        file, data = DirectFile(fd), some(sum(pieces))
        at = 0
        for size in pieces:
            file.append(data[at : at + size])
            at += size
        file.finish()
    finally:
        os.close(fd)
    assert path.read_bytes() == data.tobytes()
    return data.tobytes()


PIECES = [[], [1], [4096], [5000, 1, 0, 8191], [1 << 20, 3 << 20, 77], [5 << 20]]


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_file_past_the_page_cache(tmp_path: Path, pieces: list[int]) -> None:
    written(tmp_path / "file", pieces)


def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tmpfs was for long: the flag is refused."""
    real = fcntl.fcntl

    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if flags & direct_file._DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return int(real(fd, command, flags))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    written(tmp_path / "file", [3 << 20, 77])


def test_a_file_system_that_refuses_direct_writes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag is taken, and the write refused; then a write that comes short, so that the next begins anywhere."""
    real, refused = os.pwrite, []

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & direct_file._DIRECT:
            refused.append(at)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, data[:100_001], at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    written(tmp_path / "file", [3 << 20, 77])
    assert len(refused) <= 1


def test_a_disk_error_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "file", [3 << 20])


def test_a_source_that_is_written_to_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read twice: the bundle may not name the hash of another file than was converted."""
    model = models.tiny_llama(tmp_path / "m")
    plan = make_plan(open_source(model), "tiny", tmp_path / "out", [quant.scheme("w8a8")])
    real = pipeline.run

    def run(*args: Any) -> dict[Path, str]:
        with (model / "model.safetensors").open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\0\0")
        return real(*args)

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        convert(plan)
    assert not (tmp_path / "out").exists()
