"""``rkchatd.pyz``: one file that every Python from 3.9 on runs, worker and checker too, and that older ones refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email import parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import interpreters
from tests.daemon_process import running
from tests.daemon_server import until

TOOL = Path(__file__).resolve().parent.parent.parent / "runtime" / "tools" / "make_pyz.py"


def chosen(minor: int) -> str:
    python = interpreters.python(minor)
    if python is None:
        pytest.skip(f"there is no Python 3.{minor} on this machine")
    return python


def test_the_same_input_gives_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path / "again.pyz")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.pyz").read_bytes() == pyz.read_bytes()


def test_it_holds_nothing_compiled_and_all_licences(pyz: Path) -> None:
    names = zipfile.ZipFile(pyz).namelist()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert {"__main__.py", "LICENSE", "rkruntime/daemon/api/openapi.json"} <= set(names)
    infos = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert len(infos) >= 12
    for info in infos:
        assert [n for n in names if n.startswith(info) and "licen" in n.lower()] or "License" in _metadata(pyz, info)


def _metadata(pyz: Path, info: str) -> str:
    return zipfile.ZipFile(pyz).read(f"{info}/METADATA").decode()


@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14"])
def test_it_holds_what_each_part_asks_for(pyz: Path, python: str) -> None:
    """The pinned versions, for every Python it may run on; ours may ask for others one day."""
    infos = [name for name in zipfile.ZipFile(pyz).namelist() if name.endswith(".dist-info/METADATA")]
    parts = [parser.BytesParser().parsebytes(zipfile.ZipFile(pyz).read(name)) for name in infos]
    there = {canonicalize_name(part["Name"]): part["Version"] for part in parts}
    here = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    ours = [Requirement(line) for line in metadata.requires("rk3588") or []]
    asked = [wanted for wanted in ours if _applies(wanted, {**here, "extra": "daemon"})]
    assert len(asked) >= 6
    for part in parts:
        needed = [Requirement(line) for line in part.get_all("Requires-Dist", [])]
        asked += [wanted for wanted in needed if _applies(wanted, here)]
    for wanted in asked:
        assert wanted.specifier.contains(there[canonicalize_name(wanted.name)]), f"{wanted}: {there}"


def _applies(wanted: Requirement, environment: Mapping[str, str]) -> bool:
    return wanted.marker is None or wanted.marker.evaluate(dict(environment))


@pytest.mark.parametrize(
    ("minor", "release"), [(9, "1.3.1"), (10, "1.1.1"), (11, "1.1.1"), (12, "1.1.1"), (13, "1.3.1")]
)
def test_it_answers(
    pyz: Path, minor: int, release: str, tiny_bundles: Mapping[str, Path], runtimes: Mapping[str, Path], tmp_path: Path
) -> None:
    """From the file alone (-I): worker and schema checker start out of it, too, and what asks a library for its
    defaults."""
    config = tmp_path / "rkchatd.yaml"
    libraries = f"library: {runtimes[release]}\nsim_library: {os.environ['RKSIM_LIBRARY']}\n"
    config.write_text(f"bundle: {tiny_bundles['w8a8']}\nlisten: 127.0.0.1:0\n{libraries}")
    command = (chosen(minor), "-I", str(pyz), "--config", str(config))
    with running(command=command, folder=tmp_path) as daemon:
        until(lambda: daemon.get("/ready").status == 200)
        found = daemon.chat(max_tokens=3).json
        assert found["usage"]["completion_tokens"] == 3 and ("perf" in found["usage"]) == (release == "1.3.1")
        assert daemon.ollama(options={"num_predict": 3}).lines[-1]["eval_count"] == 3
        assert len(daemon.post("/v1/embeddings", {"input": ["x", "y"]}).json["data"]) == 2
        unsound = {"type": "json_schema", "json_schema": {"schema": {"type": "objet"}}}
        assert "'objet' is not valid" in daemon.chat(response_format=unsound).error["message"]
        peak_kb = int(Path(f"/proc/{daemon.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
        assert peak_kb <= 70 * 1024
    assert daemon.process.returncode == 0


def test_what_is_not_there_is_told_at_start(pyz: Path, tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    """Told to reinstall, or that a worker failed, again and again: a zipapp has no libraries, and never will."""
    ours = os.environ["RKLLM_LIBRARY"]
    hidden = {name: text for name, text in os.environ.items() if name not in ("RKLLM_LIBRARY", "RKSIM_LIBRARY")}

    def start(*options: str) -> tuple[int, str]:
        config = tmp_path / "rkchatd.yaml"
        config.write_text(f"bundle: {tiny_bundles['w8a8']}\nlisten: 127.0.0.1:0\n")
        # -S: without the package that is installed here.
        command = [sys.executable, "-I", "-S", str(pyz), "--config", str(config), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=60)
        return done.returncode, done.stderr

    carries = "is not in this zipapp, which carries no libraries: give the path of one with"
    if not Path("/usr/lib/librkllmrt.so").exists():
        assert start() == (
            1,
            "Error: librkllmrt.so was not found: install it as /usr/lib/librkllmrt.so, or give its path with --library "
            "(`library` in the daemon's file) or RKLLM_LIBRARY\n",
        )
    code, said = start("--library", "sim")
    assert (code, said.count("\n")) == (1, 1)
    assert f"librkllmrt.so {carries} --library FILE, or as `library` in the file of --config" in said
    code, said = start("--library", ours)
    assert (code, said.count("\n")) == (1, 1)
    assert f"librksim.so {carries} --sim-library FILE, or as `sim_library` in the file of --config" in said


@pytest.mark.parametrize("minor", [6, 7, 8])
def test_older_ones_get_a_sentence(pyz: Path, minor: int) -> None:
    done = subprocess.run([chosen(minor), str(pyz)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"Error: rkchatd needs Python 3.9 or newer, this is 3.{minor}: run it with a newer one\n"
