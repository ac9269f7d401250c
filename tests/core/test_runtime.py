"""Which library and which model: one decision, the same for every command."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle as bundles
from rk3588 import hostlib, resources, runtime, sim
from rk3588.deploy import deployment, programs, release_bundle
from rk3588.errors import BundleError, DeployError, LibraryError, NoSuchLibrary, UsageError
from rkruntime.daemon import app, config
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jobs import EngineSettings
from rkruntime.model import Model
from rkruntime.settings import Settings
from tests.core.test_cli import ANSWER, invoke, rk3588
from tests.fake_engine import FakeEngine
from tests.fakes import bundle_for_both, fake_rkllm, journal, scripted_bundle

TWIN = Path(os.environ["RKLLM_LIBRARY"])


@pytest.fixture(scope="module")
def npu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_rkllm(tmp_path_factory.mktemp("npu"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_bundles: Mapping[str, Path]) -> Path:
    """A bundle for both kinds, with an adapter for each."""
    folder = tmp_path_factory.mktemp("both")
    entries = [
        {"name": "here", "scale": 1.0, "artifacts": {"sim": "chat_template.jinja"}},
        {"name": "there", "scale": 1.0, "artifacts": {"rk3588": "model.rkllm"}},
    ]
    lora = {"mode": "adapter", "adapters": entries}
    return bundle_for_both(folder / "both", tiny_bundles["w8a8"], ANSWER, lora=lora)


def test_the_library_decides(
    both: Path, npu_library: Path, tmp_path: Path, tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle for both kinds that never reached the NPU: the simulated model was taken wherever there was one."""
    bundle = bundles.read(both)
    monkeypatch.delenv(runtime.VARIABLE)
    monkeypatch.setattr(runtime, "packaged", lambda _: TWIN)
    monkeypatch.setattr(runtime, "SYSTEM", tmp_path / "absent.so")
    assert runtime.choose(bundle) == (runtime.SIM, TWIN, both / "model.sim.gguf")
    assert runtime.choose(bundle, npu_library) == (runtime.NPU, npu_library, both / "model.rkllm")
    monkeypatch.setattr(runtime, "SYSTEM", npu_library)  # a board
    assert runtime.choose(bundle).kind == runtime.NPU
    assert runtime.choose(bundle, TWIN).kind == runtime.SIM
    assert runtime.choose(bundles.read(tiny_bundles["w8a8"])).kind == runtime.SIM
    for system in (TWIN, _for_another_processor(npu_library, tmp_path)):  # neither is an NPU's that could run here
        monkeypatch.setattr(runtime, "SYSTEM", system)
        assert runtime.choose(bundle) == (runtime.SIM, TWIN, both / "model.sim.gguf")
    monkeypatch.setenv(runtime.VARIABLE, str(npu_library))
    assert runtime.choose(bundle).kind == runtime.NPU


def _for_another_processor(library: Path, folder: Path) -> Path:
    data = bytearray(library.read_bytes())
    data[18:20] = (62 if data[18] == 183 else 183).to_bytes(2, "little")
    path = folder / "other.so"
    path.write_bytes(data)
    return path


def test_a_library_that_cannot_run_what_there_is(
    npu_library: Path, tmp_path: Path, tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for_npu = bundles.read(scripted_bundle(tmp_path / "npu", ANSWER))
    with pytest.raises(
        UsageError, match=r"has only model.sim.gguf, and .* is Rockchip's, for an NPU: .*--target rk3588"
    ):
        runtime.choose(bundles.read(tiny_bundles["w8a8"]), npu_library)
    with pytest.raises(UsageError, match=r"has only model.rkllm, and .* is the simulated runtime.*--target sim"):
        runtime.choose(for_npu, TWIN)
    monkeypatch.setenv(runtime.VARIABLE, str(TWIN))  # which no call has asked for
    with pytest.raises(BundleError, match=r"has only model.rkllm, and .* is the simulated runtime.*--target sim"):
        runtime.choose(for_npu)
    monkeypatch.delenv(runtime.VARIABLE)
    for other in (os.environ["RKSIM_LIBRARY"], sys.executable):  # ELF files that speak no RKLLM
        for bundle in (for_npu, bundles.read(tiny_bundles["w8a8"])):
            with pytest.raises(LibraryError, match=r"is no librkllmrt, for it has no rkllm_init: give the path of a"):
                runtime.choose(bundle, Path(other))
    text = tmp_path / "text.so"
    text.write_text("hello")
    with pytest.raises(LibraryError, match="is not a shared library"):
        runtime.choose(for_npu, text)


def test_a_model_of_a_newer_toolkit_is_not_even_loaded(
    tiny_bundles: Mapping[str, Path], npu_library: Path, tmp_path: Path
) -> None:
    """The runtime would say that it loaded it, and abort at the first prompt. A mere claim refuses nothing."""
    claims = {"toolkit": {"value": "1.2.3", "by": "the file's name"}}
    told: list[dict[str, Any]] = [{"toolkit": {"version": "1.1.4"}}, {"adopted": {"claims": claims}}]
    for number, more in enumerate(told):
        fine = bundle_for_both(tmp_path / str(number), tiny_bundles["w8a8"], ANSWER, **more)
        assert runtime.choose(bundles.read(fine), npu_library).kind == runtime.NPU
    newer = bundle_for_both(tmp_path / "newer", tiny_bundles["w8a8"], ANSWER, toolkit={"version": "1.2.3"})
    with pytest.raises(LibraryError, match=r"no model of a newer toolkit: give librkllmrt 1\.2\.3 or 1\.3\.1"):
        runtime.choose(bundles.read(newer), npu_library)


def test_run_says_first_which_it_is(both: Path, npu_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The banner of the runtime reads as a board's; what this is has to be told before it."""
    done = rk3588("run", both, "Hello", "-n", 2, "--json")
    first, second = done.stderr.splitlines()[:2]
    assert first == f"Simulated, no NPU is used: model.sim.gguf with {TWIN}"
    assert "rkllm-runtime version" in second
    facts = json.loads(done.stdout)
    assert (facts["runtime"], facts["model_file"]) == ("sim", "model.sim.gguf")
    monkeypatch.setenv(runtime.VARIABLE, str(npu_library))
    done_here = invoke("run", both, "Hello", "--json")
    assert json.loads(done_here.stdout)["text"] == "Hi!"
    assert done_here.stderr.startswith(f"On the NPU: model.rkllm with {npu_library}\n")
    assert journal(npu_library)[0].startswith("init ctx=512 ")  # the model's own context, there too


def test_the_daemon_counts_on_the_model_that_is_loaded(both: Path, npu_library: Path) -> None:
    """Deadlines by the size of another file, adapters that the library cannot load."""
    sizes = {TWIN: (both / "model.sim.gguf").stat().st_size, npu_library: (both / "model.rkllm").stat().st_size}
    loras = {TWIN: ["here"], npu_library: ["there"]}
    for library, size in sizes.items():
        settings = EngineSettings(both, model=Settings(library=library, max_tokens=5))
        engine = WorkerEngine(settings)
        assert engine._deadlines.weights_gb == size / 1e9
        assert engine._model == Settings(library=library)  # a request may ask for more than 5 tokens
        made = app.make(FakeEngine(settings), config.make(None, {"bundle": both, "library": library}))
        assert made.routes
        kind = runtime.choose(bundles.read(both), library).kind
        assert list(runtime.loras_for(bundles.read(both), kind)) == loras[library]


def test_the_daemon_does_not_begin_without_what_counts_tokens(
    tiny_bundles: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listened, and every worker failed, again and again."""
    settings = EngineSettings(tiny_bundles["w8a8"], sim_library=tmp_path / "absent.so")
    with pytest.raises(NoSuchLibrary, match=r"no library .*absent\.so: give .* librksim\.so .sim_library"):
        WorkerEngine(settings)
    monkeypatch.setenv("RKSIM_LIBRARY", str(tmp_path / "absent.so"))
    with pytest.raises(LibraryError, match=r"no library .*absent\.so .from RKSIM_LIBRARY.: give .* librksim\.so"):
        WorkerEngine(EngineSettings(tiny_bundles["w8a8"]))
    npu = fake_rkllm(tmp_path)
    WorkerEngine(EngineSettings(scripted_bundle(tmp_path / "b", ANSWER), model=Settings(library=npu)))  # counts nothing


def test_what_is_sent_to_a_board(both: Path) -> None:
    bundle = bundles.read(both)
    for simulated, model, left_out, lora in (
        (True, "model.sim.gguf", "model.rkllm", "here"),
        (False, "model.rkllm", "model.sim.gguf", "there"),
    ):
        files = {file.path: file for file in release_bundle.bundle_files(bundle, simulated)}
        assert f"bundle/{model}" in files and f"bundle/{left_out}" not in files
        manifest = json.loads(bytes(files["bundle/rkbundle.json"].source))
        assert [entry["name"] for entry in manifest["lora"]["adapters"]] == [lora]
        assert list(manifest["artifacts"].values()) == [model]
        assert {f"bundle/{entry['path']}" for entry in manifest["files"]} == files.keys() - {"bundle/rkbundle.json"}


def test_a_bundle_that_cannot_chat_is_not_deployed(tmp_path: Path, tiny_bundles: Mapping[str, Path]) -> None:
    """It was refused by its own proof, after the old release had been stopped."""
    bare = bundles.read(scripted_bundle(tmp_path / "bare", ANSWER, template=None))
    with pytest.raises(DeployError, match=r"has no chat_template.jinja, so the daemon could not chat with it"):
        nothing: Any = None  # the board is not even looked at
        deployment.deploy(nothing, bare, deployment.Options(), nothing)
    release_bundle.check_template(bundles.read(tiny_bundles["w8a8"]))


def test_the_context_is_the_models_own(tmp_path: Path, tiny_bundles: Mapping[str, Path]) -> None:
    """It was 4096 whatever the model was trained for; of bundles whose manifest does not say, the file does."""
    told: list[str] = []
    model = {**bundles.read(tiny_bundles["w8a8"]).manifest["model"]}
    del model["context_length"]
    older = bundle_for_both(tmp_path / "older", tiny_bundles["w8a8"], ANSWER, model=model)
    for path in (tiny_bundles["w8a8"], older):
        with Model(path, Settings(), told.append) as loaded:
            assert loaded.context == 512
            with pytest.raises(UsageError, match="has 600 tokens, and a context of 512 takes 508"):
                list(loaded.answer([3] * 600))
    assert told == []
    with Model(older, Settings(context=1000), told.append) as loaded:
        assert loaded.context == 1000
    assert told == ["the model was trained for 512 tokens of context: beyond them its answers are worth little"]
    with pytest.raises(BundleError, match="context_length is '512', expected a number of tokens"):
        bundles.read(bundle_for_both(tmp_path / "x", older, ANSWER, model={**model, "context_length": "512"}))


def test_programs_that_import_from_the_former_name_go_on() -> None:
    assert (sim.SimModel, sim.packaged) == (hostlib.SimModel, resources.packaged)
    assert all(hasattr(sim, name) for name in sim.__all__)


@pytest.mark.parametrize(
    ("name", "release"), [("sim", "1.1.1"), ("sim-1.2.0", "1.2.0"), ("sim-1.2.3", "1.2.3"), ("sim-1.3", "1.3.1")]
)
def test_simulated_runtimes_by_name(name: str, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --library and from the environment alike."""
    folder = "" if release == "1.1.1" else f"{release}/"
    found = resources.packaged(f"lib/{folder}librkllmrt.so")
    assert runtime.read(found).version == release and runtime.is_simulated(found)
    monkeypatch.setenv(runtime.VARIABLE, name)
    assert runtime.find() == runtime.find(Path(name)) == found
    assert programs.find_library(runtime.twin_file(name), "") == found  # for a board that is as this machine
    assert Settings.__dataclass_fields__["library"].metadata["setting"].kind.convert(name, None, None) == found


def test_a_simulated_runtime_that_there_is_not(
    tiny_bundles: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoSuchLibrary, match=r"no simulated runtime sim-9: there are sim, sim-1\.2\.0"):
        runtime.find(Path("sim-9"))
    with pytest.raises(NoSuchLibrary, match="no simulated runtime sim-9"):
        invoke("deploy", tiny_bundles["w8a8"], "--board", "kitchen", "--runtime", "sim-9")
    monkeypatch.setenv(runtime.VARIABLE, "sim-board/librkllmrt.so")  # a file's name
    with pytest.raises(LibraryError, match=r"there is no library sim-board/librkllmrt\.so"):
        runtime.find()
