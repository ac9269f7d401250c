"""Sweeps: one plan, cells that fail alone, and a restart at any moment that ends in the same bundles."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rk3588 import bundle
from rk3588.errors import UsageError
from rkconvert import memory
from rkconvert.request import Request
from rkconvert.sweep import execute, sweep_file
from rkconvert.sweep.cell_process import Result
from rkconvert.sweep.cells import Cell, OpenedModels
from tests import loras, models, toolkit_double
from tests.convert.test_toolkit import waited
from tests.toolkit_double import Installed

KILLS = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    models.tiny_llama(folder / "tiny", hidden=128, heads=2, kv_heads=2, head_dim=64, intermediate=256)
    models.tiny_llama(folder / "odd", hidden=64, intermediate=160)
    loras.peft_lora(folder / "tuned", models.Tiny(hidden=128, heads=2, kv_heads=2, head_dim=64, intermediate=256))
    return folder


def written(folder: Path, text: str) -> Path:
    (folder / "sweep.yaml").write_text(text)
    return folder / "sweep.yaml"


WHOLE = """
targets: [sim, rk3588]
models: [PLACE/tiny, {model: PLACE/odd, name: Odd}]
dtypes: [w8a8, w8a8_g128]
optimization_levels: [0, 1]
loras: [none, "PLACE/tuned:fine:0.5"]
out: out
"""


def digests(folder: Path) -> dict[str, str]:
    """Every file below, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_cell_once_and_failures_alone(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    """16 cells: Odd's inputs are not divided by 128, and the adapter is not Odd's. The rest is made."""
    file = written(tmp_path, WHOLE.replace("PLACE", str(place)))
    planned = toolkit.rkconvert("sweep", file, "--dry-run", "--json")
    rows = json.loads(planned.stdout)
    assert len(rows) == 16 and not (tmp_path / "out").exists()
    refused = {(row["name"], row["dtype"], row["lora"]) for row in rows if row["state"] == "failed"}
    tuned = {("Odd-fine", dtype, "fine") for dtype in ("w8a8", "w8a8_g128")}
    assert refused == {("Odd", "w8a8_g128", None), *tuned}

    done = toolkit.rkconvert("sweep", file, "--json")
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    made = [row for row in rows if row["state"] == "made"]
    assert len(made) == 10 and sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        Path(row["path"]).name for row in made
    )
    for row in made:
        found = bundle.read(row["path"])
        bundle.verify(found)
        assert found.manifest["toolkit"]["optimization_level"] == row["optimization_level"]
        assert [*found.loras] == ([row["lora"]] if row["lora"] else [])
        assert row["bytes"] == bundle.size(found.path)
    reasons = {row["reason"] for row in rows if row["state"] == "failed"}
    assert any("which groups of 128 do not divide" in reason for reason in reasons)
    assert any("is it an adapter for another model?" in reason for reason in reasons)

    again = toolkit.rkconvert("sweep", file)
    assert again.stdout.count("there already") == 10 and again.stdout.count("failed") == 6
    header = again.stdout.splitlines()[0].split()
    assert header == ["model", "dtype", "hybrid", "opt", "lora", "state", "size"]


SMALL = """
targets: [sim, rk3588]
models: [PLACE/tiny]
dtypes: [w8a8, w8a8_g128]
hybrid_rates: [0, 0.5]
loras: [none, "PLACE/tuned:fine:0.5"]
out: out
"""


@pytest.mark.parametrize("kills", [KILLS, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(toolkit: Installed, place: Path, tmp_path: Path, kills: int) -> None:
    """SIGKILL to rkconvert, over and over, then once to the end: byte for byte what an undisturbed sweep makes."""
    text = SMALL.replace("PLACE", str(place))
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    started = time.monotonic()
    undisturbed = toolkit.rkconvert("sweep", written(tmp_path / "whole", text))
    length = time.monotonic() - started
    assert undisturbed.returncode == 0, undisturbed.stderr
    file = written(tmp_path / "killed", text)
    command = [sys.executable, "-c", toolkit_double.PROGRAM, "sweep", str(file)]
    seed = int(os.environ.get("SWEEP_SEED", random.randrange(1 << 32)))
    moments = random.Random(seed)
    for _ in range(kills):
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=toolkit.env, stdout=quiet, stderr=quiet) as process:
            time.sleep(moments.uniform(0, length * 0.6))
            process.send_signal(signal.SIGKILL)
    last = toolkit.rkconvert("sweep", file)
    assert last.returncode == 0, f"SWEEP_SEED={seed}: {last.stdout}{last.stderr}"
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole"), f"SWEEP_SEED={seed}"
    assert sorted(p.name for p in (tmp_path / "killed" / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole" / "out").iterdir()
    )


def test_ctrl_c_ends_the_cells_too(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    file = written(tmp_path, SMALL.replace("PLACE", str(place)))
    record = tmp_path / "record"
    env = {**toolkit.env, "RKLLM_DOUBLE": "build:hang", "RKLLM_DOUBLE_RECORD": str(record)}
    command = [sys.executable, "-c", toolkit_double.PROGRAM, "sweep", str(file)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        waited(lambda: record.exists() and '"build"' in record.read_text())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.splitlines()[-1]) == (130, "Interrupted")
    assert not list((tmp_path / "out").glob("*"))  # the folder itself stays where one cell ended after the other


def test_community_names(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    text = f"models: [{{model: {place}/tiny, name: Llama-3.2-3B-Instruct}}]\ndtypes: w8a8_g128\nhybrid_rates: 0.5\n"
    file = written(tmp_path, text + "optimization_levels: 0\ntargets: rk3588\nout: out\n")
    done = toolkit.rkconvert("sweep", file, "--community-names")
    assert done.returncode == 0, done.stderr
    name = "Llama-3.2-3B-Instruct-rk3588-w8a8_g128-opt-0-hybrid-ratio-0.5"
    assert (tmp_path / "out" / name / f"{name}.rkllm").is_file()


def test_what_is_in_the_way_is_not_touched(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    """A bundle that was made otherwise, and a folder that is none, fail their cell and stay."""
    file = written(tmp_path, f"models: {place}/tiny\ndtypes: [w8a8, fp16]\nout: out\n")
    other = toolkit.rkconvert(place / "tiny", "-o", tmp_path / "out", "--target", "rk3588", "--target", "sim")
    (tmp_path / "out" / "tiny-rk3588-fp16").mkdir()
    before = digests(tmp_path / "out")
    done = toolkit.rkconvert("sweep", file)
    assert other.returncode == 0 and done.returncode == 1
    assert "exists already and is not what this sweep makes" in done.stdout
    assert "tiny-rk3588-fp16 is not a bundle" in done.stdout
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: [m]\nout: o\ndtype: w8a8\n", r"unknown key 'dtype': did you mean 'dtypes'\?"),
        ("models: [m]\n", "does not say where to write"),
        ("out: o\n", "'models' is empty or missing"),
        ("models: [{name: x}]\nout: o\n", "is no model: give a path, a name on the hub"),
        ("models: [m]\nout: o\nhybrid_rates: [half]\n", "'hybrid_rates' cannot be 'half'"),
        ("models: [m]\nout: o\nrotate: [true]\n", "'rotate' cannot be True"),
        ("models: [m]\nout: o\nrotate: hadamar\n", "--rotate hadamar: did you mean 'hadamard'"),
        ("models: [m]\nout: o\nhybrid_rates: [1]\n", "--hybrid-rate 1: it is a share of the layers"),
        ("models: [m]\nout: o\ntargets: [npu]\n", "unknown target 'npu'"),
        ("models: [m]\nout: o\noptimization_levels: [0]\n", "--optimization-level is for rkllm-toolkit"),
        ("models: [m, m]\nout: o\n", "two cells would both become m-rk3588-w8a8"),
        ("models: [m]\nout: o\nloras: [nowhere]\n", "nowhere is not a folder"),
        ("models: [m\n", r"sweep.yaml, line 2: not valid YAML: expected ',' or ']', but got [^\n]*$"),
        ("models: [m]\nout: \x00\n", r"sweep.yaml, line 2: a character that YAML does not allow$"),
        ("- m\n", "holds no mapping"),
    ],
)
def test_files_that_are_wrong(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        sweep_file.load(written(tmp_path, text), None)


def test_a_model_that_is_nowhere_is_told_with_the_folder_it_was_looked_for_in(tmp_path: Path) -> None:
    (cell,) = sweep_file.load(written(tmp_path, "models: [nope.gguf]\nout: o\n"), None).cells
    with pytest.raises(UsageError, match=f"^{re.escape(str(tmp_path / 'nope.gguf'))} does not exist"):
        OpenedModels().source(cell)


def test_no_more_at_once_than_memory_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 6, 5 and 4 into 10: 6 and 4 at once, then 5; one that is too large for the machine runs alone."""
    at_once: list[set[str]] = []
    going: dict[str, int] = {}

    class Running:
        def __init__(self, arguments: list[str], _keep: tuple[int, ...]) -> None:
            self.name, self.polls = arguments[0], 0
            going[self.name] = 1
            at_once.append({*going})

        def ended(self) -> bool:
            self.polls += 1
            return self.polls > 2

        def result(self) -> Result:
            del going[self.name]
            return Result("made")

        def stop(self) -> None:
            pass

    monkeypatch.setattr(execute, "CellProcess", Running)
    monkeypatch.setattr(memory, "machine", lambda: memory.Memory(ram=10, swap=0, free=10))
    cells = [(Cell(name, name, Request(), tmp_path), size) for name, size in (("6", 6), ("5", 5), ("4", 4))]
    told: list[str] = []
    execute.run_here(cells, 8, 0, lambda cell, _: told.append(cell.name), lambda: None)
    assert sorted(told) == ["4", "5", "6"]
    assert at_once == [{"6"}, {"6", "4"}, {"5"}]
    at_once.clear()
    execute.run_here([(cells[0][0], 99), (cells[1][0], 99)], 8, 0, lambda *_: None, lambda: None)
    assert at_once == [{"6"}, {"5"}]


@contextmanager
def cluster(env: dict[str, str], folder: Path) -> Iterator[str]:
    """A real Dask scheduler with two workers on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    common = ["--host", host, "--no-dashboard"]
    workers = ["--nworkers", "2", "--nthreads", "1", "--memory-limit", "0", "--local-directory", str(folder)]
    commands = [["dask_scheduler", *common, "--port", port], ["dask_worker", address, *common, *workers]]
    with ExitStack() as stack, (folder / "log").open("w") as log:
        for module, *arguments in commands:
            command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
            process = stack.enter_context(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder))
            stack.callback(process.terminate)
        yield f"tcp://{address}"


def test_on_a_dask_cluster(toolkit: Installed, place: Path, tmp_path: Path) -> None:
    """The same bundles as here, a failed cell among them, and a scheduler that is not there is one sentence."""
    text = f"models: [{place}/tiny]\ndtypes: [w8a8, w8a8_g128, fp16]\nout: out\n"
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here = toolkit.rkconvert("sweep", written(tmp_path / "here", text))
    assert here.returncode == 0, here.stderr
    with cluster(toolkit.env, tmp_path) as address:
        done = toolkit.rkconvert("sweep", written(tmp_path / "there", text), "--dask", address, "--json")
    assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
    assert [row["state"] for row in json.loads(done.stdout)] == ["made"] * 3
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
    more = written(tmp_path / "here", text + "community_names: true\n")
    nobody = toolkit.rkconvert("sweep", more, "--dask", address)
    assert nobody.returncode == 2
    assert f"no Dask scheduler answers at {address}" in nobody.stderr and "Traceback" not in nobody.stderr
