"""Which release a librkllmrt.so is: stubs of every set of functions, files that lie, and files that are damaged."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import elf, library_version, rkllm, runtime
from rk3588.errors import LibraryError
from rk3588.library_version import Release, version_of
from tests.fakes import fake_rkllm

Make = Callable[..., Path]
LAYOUTS = {"1.2.1": (96, 93), "1.3": (68, 65)}  # the default CPUs: their mask, their number


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Compiles a library that exports these functions and does nothing; its defaults are 0xf0 and 4 where ``cpus``
    says, and it names itself as ``text`` says. One of each kind is made."""
    folder = tmp_path_factory.mktemp("stubs")
    made: dict[tuple[Any, ...], Path] = {}

    def make(functions: frozenset[str], text: str = "", cpus: str = "", more: str = "", flags: str = "") -> Path:
        key = (functions, text, cpus, more, flags)
        if key in made:
            return made[key]
        lines = ["struct P { unsigned char raw[184]; };", f'const char banner[] = "x {text}";', more]
        lines += [f"int {name}(void) {{ return 0; }}" for name in sorted(functions - {"rkllm_createDefaultParam"})]
        if "rkllm_createDefaultParam" in functions:
            fill = [f"p.raw[{m}] = 0xf0; p.raw[{n}] = 4;" for f, (m, n) in LAYOUTS.items() if f in cpus.split()]
            body = f"struct P p = {{{{0}}}}; {' '.join(fill)} return p;"
            lines.append(f"struct P rkllm_createDefaultParam(void) {{ {body} }}")
        made[key] = folder / f"stub{len(made)}.so"
        command = ["gcc", "-shared", "-fPIC", "-O1", *flags.split(), "-x", "c", "-", "-o", str(made[key])]
        subprocess.run(command, input="\n".join(lines), text=True, check=True)
        return made[key]

    return make


def test_a_glibc_without_end(tmp_path: Path) -> None:
    path = tmp_path / "librkllmrt.so"
    head = b"\x7fELF\2\1\1".ljust(18, b"\0") + (183).to_bytes(2, "little")
    path.write_bytes(head + b"\0rkllm_init\0GLIBC_2.31\0GLIBC_2." + b"9" * 5000 + b"\0")
    assert runtime.read(path).glibc == (2, 31)


def functions(family: str) -> frozenset[str]:
    """All that a family exports."""
    found: frozenset[str] = frozenset()
    for each, more in rkllm.FUNCTIONS.items():
        found |= more
        if each == family:
            return found
    return found


def named(version: str) -> str:
    return f"I rkllm: rkllm-runtime version: {version}, rknpu"


RIGHT = [
    ("1.1", "", "", Release("1.1", "1.1")),
    ("1.1", named("1.1.4"), "", Release("1.1", "1.1.4")),
    ("1.2.0", "", "", Release("1.2.0", "1.2.0")),
    ("1.2.0", named("1.2.1b1"), "", Release("1.2.0", "1.2.1b1")),
    ("1.2.0", named("1.2"), "", Release("1.2.0", "1.2")),
    ("1.2.1", "", "1.2.1", Release("1.2.1", "1.2.1")),
    ("1.2.1", named("1.2.3"), "1.2.1", Release("1.2.1", "1.2.3")),
    ("1.3", "", "1.3", Release("1.3", "1.3")),
    ("1.3", named("1.3.1"), "1.3", Release("1.3", "1.3.1")),
]


@pytest.mark.parametrize(("family", "text", "cpus", "found"), RIGHT)
def test_a_library_is_what_it_exports_lays_out_and_says(
    stub: Make, family: str, text: str, cpus: str, found: Release
) -> None:
    assert version_of(stub(functions(family), text, cpus)) == found


@pytest.mark.parametrize("flags", ["-Wl,--hash-style=sysv", "-Wl,--hash-style=gnu", "-s"])
def test_whatever_the_linker_wrote(stub: Make, flags: str) -> None:
    """Stripped, and with either hash table."""
    assert version_of(stub(functions("1.2.0"), flags=flags)).family == "1.2.0"


WRONG = {
    "1.0": (functions("1.0"), "", "", "is librkllmrt 1.0, whose structs differ .*: install librkllmrt 1.1.1"),
    "another library": (frozenset({"rkllm_run"}), "", "", "is not librkllmrt: it has no rkllm_init"),
    "half of 1.1": (
        functions("1.1") - {"rkllm_load_lora"}, "", "", "has no rkllm_load_lora: it is not a whole librkllmrt 1.1",
    ),
    "1.1 with a function of 1.2": (
        functions("1.1") | {"rkllm_clear_kv_cache"}, "", "", "has no rkllm_set_chat_template: .* 1.2.0",
    ),
    "1.3 without one": (
        functions("1.3") - {"rkllm_clear_kv_cache"}, named("1.3.1"), "1.3", "has no rkllm_clear_kv_cache: .* 1.2.1",
    ),
    "1.1 that says 1.2.3": (
        functions("1.1"), named("1.2.3"), "", "calls itself librkllmrt 1.2.3, and its functions are 1.1's",
    ),
    "1.3 that says 1.1.1": (
        functions("1.3"), named("1.1.1"), "1.3", "calls itself librkllmrt 1.1.1, and its functions are 1.2.1 or 1.3's",
    ),
    "1.3 that says 1.2.3": (
        functions("1.3"), named("1.2.3"), "1.3", "itself librkllmrt 1.2.3, and its default .* laid out as 1.3's",
    ),
    "1.2 that says 1.3.1": (
        functions("1.2.1"), named("1.3.1"), "1.2.1", "itself librkllmrt 1.3.1, and its default .* laid out as 1.2.1's",
    ),
    "one that says two": (
        functions("1.1"), f"{named('1.1.1')} {named('1.1.2')}", "", "itself librkllmrt 1.1.1 and 1.1.2",
    ),
    "a later one": (functions("1.3"), named("1.4.0"), "1.3", "is librkllmrt 1.4.0, whose structs differ"),
    "neither layout": (
        functions("1.3"), "", "", "1.2.1 or 1.3, and which cannot be told: .*as 1.2.1's they .* mask 0x0, count 0",
    ),
    "both layouts": (functions("1.3"), "", "1.2.1 1.3", "and which cannot be told: .*as 1.3's .* mask 0xf0, count 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused_in_a_sentence(stub: Make, name: str) -> None:
    exported, text, cpus, message = WRONG[name]
    with pytest.raises(LibraryError, match=message) as error:
        version_of(stub(exported, text, cpus))
    assert "\n" not in str(error.value)


def test_a_library_that_misbehaves_when_it_is_asked(
    stub: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own: this one lives, and what it prints is no answer."""
    whole = functions("1.3")
    crash = fake_rkllm(tmp_path, "-DCRASH", release="1.3.1")
    with pytest.raises(LibraryError, match=r"cannot be asked for its default parameters: .* was ended by SIGABRT"):
        version_of(crash)
    leaves = stub(whole, more='#include <stdlib.h>\n__attribute__((constructor)) void leave(void) { _Exit(3); }')
    with pytest.raises(LibraryError, match="the process that did ended with exit code 3"):
        version_of(leaves)
    raises = stub(whole, more="#include <signal.h>\n__attribute__((constructor)) void end(void) { raise(40); }")
    with pytest.raises(LibraryError, match="the process that did was ended by signal 40"):  # which has no name
        version_of(raises)
    needs = stub(whole, more="extern int nobody_has_this(void); int f(void) { return nobody_has_this(); }")
    with pytest.raises(LibraryError, match=r"cannot load .*: undefined symbol: nobody_has_this"):
        version_of(needs)
    loud = '#include <stdio.h>\n__attribute__((constructor)) void say(void) { puts("{}"); fflush(stdout); }'
    assert version_of(stub(whole, cpus="1.3", more=loud)).family == "1.3"
    monkeypatch.setattr(library_version, "PROBE_S", 0.3)
    hang = stub(whole, more="#include <unistd.h>\n__attribute__((constructor)) void wait_(void) { sleep(60); }")
    with pytest.raises(LibraryError, match=r"did not give its default parameters within .* it hangs"):
        version_of(hang)


def test_only_what_symbols_do_not_tell_is_run(stub: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in a child; and what was found once is not asked for again."""
    asked: list[Path] = []
    ask = library_version._ask

    def noted(path: Path) -> bytes:
        asked.append(path)
        return ask(path)

    monkeypatch.setattr(library_version, "_ask", noted)
    monkeypatch.setattr(ctypes, "CDLL", None)
    for family in ("1.1", "1.2.0"):
        version_of(stub(functions(family), more="/* not run */"))
    with pytest.raises(LibraryError):
        version_of(stub(functions("1.3"), named("1.4.0"), more="/* not run */"))
    assert asked == []
    newest = stub(functions("1.3"), cpus="1.3", more="/* run once */")
    assert [version_of(newest).family for _ in range(3)] == ["1.3"] * 3 and asked == [newest]


def test_files_that_are_no_library_for_this_machine(stub: Make, tmp_path: Path) -> None:
    whole = stub(functions("1.1")).read_bytes()
    small = whole[:4] + b"\1" + whole[5:]
    cases = {
        "arm": (whole[:18] + b"\x28\0" + whole[20:], f"is built for arm, this machine is {runtime.this_machine()}"),
        "small": (small, "with 32 bits or big-endian"),
        "text": (b"hello", "is not a shared library"),
        "empty": (b"", "is not a shared library"),
        "cut": (whole[:2000], "is cut off at 2000 bytes: fetch it again"),
        "program": (whole[:16] + b"\2\0" + whole[18:], "is a program or an object file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LibraryError, match=message):
            version_of(tmp_path / name)
    for path, message in ((tmp_path, "is no librkllmrt.so"), (tmp_path / "absent", "No such file")):
        with pytest.raises(LibraryError, match=message):
            version_of(path)
    for other in (os.environ["RKSIM_LIBRARY"], sys.executable):
        with pytest.raises(LibraryError, match=r"not librkllmrt: it has no rkllm_init|is a program"):
            version_of(other)


def test_a_file_that_was_replaced_is_looked_at_again(stub: Make, tmp_path: Path) -> None:
    path = tmp_path / "librkllmrt.so"
    for family in ("1.1", "1.2.0"):
        path.unlink(missing_ok=True)
        path.write_bytes(stub(functions(family)).read_bytes())
        assert version_of(path).family == family


@given(st.data())
def test_a_damaged_file_is_read_or_refused(stub: Make, data: st.DataObject) -> None:
    """Whatever is written over its headers and tables, or cut off: never another exception, never a long search."""
    flags = data.draw(st.sampled_from(["", "-Wl,--hash-style=sysv"]))
    whole = bytearray(stub(functions("1.1"), flags=flags).read_bytes())
    # Headers, segments, hash tables, symbols and names lie in front; the dynamic table near the end.
    places = st.one_of(st.integers(0, 0x900), st.integers(len(whole) // 2, len(whole) - 8))
    values = st.one_of(st.binary(max_size=8), st.just(b"\xff" * 8))
    for at, value in data.draw(st.lists(st.tuples(places, values), max_size=6)):
        whole[at : at + len(value)] = value
    raw = bytes(whole[: data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))])
    try:
        elf.machine(raw, "x")
        names = elf.exported(raw, "rkllm_", "x")
        assert all(name.startswith("rkllm_") and len(name) <= 256 for name in names)
    except LibraryError as error:
        assert str(error).startswith("x ") and "\n" not in str(error)
