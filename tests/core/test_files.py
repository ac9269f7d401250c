"""Folders from elsewhere: links that leave them, what is no file, what never ends; and text that steers a terminal."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rk3588 import files
from rk3588.errors import BundleError, CheckpointError, printable, printable_json, shown


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("key")
    made = tmp_path / "models--user--tiny" / "snapshots" / "main"
    made.mkdir(parents=True)
    (made / "own.json").write_text('{"a": 1}')
    return made


def read(path: Path, folder: Path | None) -> str:
    return files.read_text(path, 1000, folder, CheckpointError)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        old = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has 107 bytes at most
        try:
            bound.bind(path.name)
        finally:
            os.chdir(old)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out": (lambda p: p.symlink_to(p.parents[3] / "secret"), r"x is a link that leaves its folder \(to .*ret\)"),
    "a link out that leads nowhere": (lambda p: p.symlink_to("/nowhere/at/all"), r"leaves its folder \(to /nowhere"),
    "a link to a device": (lambda p: p.symlink_to("/dev/zero"), r"leaves its folder \(to /dev/zero\)"),
    "a link to a neighbour": (lambda p: p.symlink_to("../../../secret"), r"leaves its folder"),
    "a link to itself": (lambda p: p.symlink_to(p), r"cannot read .*x: Too many levels of symbolic links"),
    "a FIFO": (lambda p: os.mkfifo(p), r"x is a FIFO, where a file is expected"),
    "a folder": (lambda p: p.mkdir(), r"x is a folder, where a file is expected"),
    "a socket": (a_socket, r"x is a socket, where a file is expected"),
    "too large": (lambda p: p.write_bytes(b"x" * 1001), r"x has 0.0 MB, where 0 MB are the most"),
    "no UTF-8": (lambda p: p.write_bytes(b"a\xff"), r"x is not a text in UTF-8 \(byte 1\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_not_read(folder: Path, case: str) -> None:
    make, sentence = STRANGE[case]
    make(folder / "x")
    with pytest.raises(CheckpointError, match=sentence):
        read(folder / "x", folder)


def test_a_device_that_the_user_named_is_no_file() -> None:
    with pytest.raises(CheckpointError, match="/dev/zero is a device, where a file is expected"):
        read(Path("/dev/zero"), None)


def test_a_file_that_says_it_is_empty_and_is_not() -> None:
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(CheckpointError, match="are the most"):
        files.read_bytes(Path("/proc/self/status"), 10, None, CheckpointError)


def test_links_within_the_folder_and_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "inside").symlink_to("own.json")
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "0123").write_text("blob")
    (folder / "blob").symlink_to("../../blobs/0123")
    assert read(folder / "inside", folder) == '{"a": 1}'
    assert read(folder / "blob", folder) == "blob"
    (folder / "sub").mkdir()
    (folder / "sub" / "blob").symlink_to("../../../blobs/0123")
    assert read(folder / "sub" / "blob", folder / "sub") == "blob"
    (blobs / "4567").symlink_to(tmp_path / "secret")
    (folder / "again").symlink_to("../../blobs/4567")
    with pytest.raises(CheckpointError, match="leaves its folder"):
        read(folder / "again", folder)


def test_a_folder_of_blobs_that_is_a_link_is_not_the_hubs(folder: Path, tmp_path: Path) -> None:
    (folder.parent.parent / "blobs").symlink_to(tmp_path)
    (folder / "x").symlink_to("../../blobs/secret")
    with pytest.raises(CheckpointError, match="leaves its folder"):
        read(folder / "x", folder)


def test_follow_links_is_for_one_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "x").symlink_to(tmp_path / "secret")
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").symlink_to(tmp_path / "secret")
    files.follow_links(folder)
    assert read(folder / "x", folder) == "key"
    with pytest.raises(BundleError, match=r"leaves its folder .*copy the bundle with its files \(cp -rL\)"):
        files.read_text(other / "x", 1000, other, BundleError)


def test_a_copy_is_a_file(folder: Path, tmp_path: Path) -> None:
    (folder / "x").symlink_to("own.json")
    files.copy(folder / "x", tmp_path / "copied", 1000, folder, CheckpointError)
    assert not (tmp_path / "copied").is_symlink() and json.loads((tmp_path / "copied").read_text()) == {"a": 1}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0", "x" * 256, "é" * 128, "\ud800", None, 3])
def test_what_cannot_be_a_files_name(name: object) -> None:
    assert not files.is_name(name)


def test_what_can_be() -> None:
    assert all(map(files.is_name, ["model-00001-of-00002.safetensors", "x" * 255, "名前", "...", ".hidden"]))


HOSTILE = "a\x1b[2J\x9b1m\u202eb\r\u2066c\x07\x7fd\ud800"


def test_text_for_a_terminal() -> None:
    assert printable(HOSTILE) == "a\ufffd[2J\ufffd1m\ufffdb\ufffd\ufffdc\ufffd\ufffdd\ufffd"
    kept = "tab\tline\n“名前” é\u00a0\u3000 👩‍👩‍👧 עברית\u200f"
    assert printable(kept) == kept


def test_json_for_a_terminal_means_the_same() -> None:
    text = printable_json({"name": HOSTILE})
    assert printable(text) == text and json.loads(text) == {"name": HOSTILE}


def test_answers_are_harmless_on_a_terminal_and_untouched_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    assert shown(HOSTILE, stream) == HOSTILE
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert shown(HOSTILE, stream) == printable(HOSTILE)
