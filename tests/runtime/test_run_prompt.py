"""What `rk3588 run` makes its prompt of: the command line, a file, a pipe, or all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Union

import pytest

from rk3588 import files
from rk3588.errors import UsageError
from rkruntime import terminal
from rkruntime.commands import run

Pipe = Callable[[Union[str, bytes]], None]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    """Sets what stands on stdin; without a call it is /dev/null."""
    with ExitStack() as opened:
        monkeypatch.setattr(sys, "stdin", opened.enter_context(Path(os.devnull).open()))

        def fill(text: Union[str, bytes]) -> None:
            read, write = os.pipe()
            os.write(write, text.encode() if isinstance(text, str) else text)
            os.close(write)
            monkeypatch.setattr(sys, "stdin", opened.enter_context(os.fdopen(read)))

        yield fill
        monkeypatch.undo()


def test_a_file_goes_after_the_prompt_and_a_pipe_after_both(pipe: Pipe, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Grüße\nline\n\n")
    assert run._prompt("Sum up:", None) == "Sum up:"
    assert run._prompt("Sum up:", file) == "Sum up:\n\nGrüße\nline"
    assert run._prompt(None, file) == "Grüße\nline"
    pipe("more\n")
    assert run._prompt("Sum up:", file) == "Sum up:\n\nGrüße\nline\n\nmore"
    pipe("")
    assert run._prompt(None, file) == "Grüße\nline"
    pipe("all\n")
    assert run._prompt(None, None) == "all"


def test_a_file_that_cannot_be_one_is_a_sentence(pipe: Pipe, tmp_path: Path) -> None:
    pipe("")
    (tmp_path / "empty").write_text(" \n")
    os.mkfifo(tmp_path / "fifo")
    for name, told in (("none", "cannot read"), ("empty", "is empty"), ("fifo", "fifo"), ("", str(tmp_path))):
        with pytest.raises(UsageError, match=told):
            run._prompt("x", tmp_path / name)


def test_no_prompt_at_all(pipe: Pipe) -> None:
    pipe("  \n")
    with pytest.raises(UsageError, match="the prompt is empty"):
        run._prompt(None, None)


def test_what_is_piped_or_typed_is_held_to_utf_8_as_a_file_is(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for raw, place in ((b"caf\xe9", 3), (b"\xff\xfex\0", 0)):
        pipe(raw)
        with pytest.raises(UsageError, match=rf"stdin is not a text in UTF-8 \(byte {place}\)"):
            run._prompt(None, None)
        pipe(b"Gr\xc3\xbc\xc3\x9fe\n" + raw)
        read = terminal.reader([], None).read
        assert read("") == "Grüße"
        with pytest.raises(UsageError, match=rf"stdin is not a text in UTF-8 \(byte {place}\)"):
            read("")
    pipe("")
    with pytest.raises(UsageError, match=r"the prompt is not a text in UTF-8 \(character 3\)"):
        run._prompt(os.fsdecode(b"caf\xe9"), None)
    monkeypatch.setattr(files, "TEXT", 8)
    pipe("123456789")
    with pytest.raises(UsageError, match="stdin has more than"):
        run._prompt(None, None)
