"""`rkconvert user/repo` against a small hub on 127.0.0.1: each test runs the program as a user does."""

from __future__ import annotations

import filecmp
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download

from rk3588.errors import UsageError
from rkconvert.cli import main
from rkconvert.sources.base import Origin, Source
from rkconvert.sources.gguf_file import read_header
from rkconvert.sources.hub import HubModel, HubName, parse, peek
from rkconvert.sources.hub_client import Repository
from rkconvert.sources.opening import open_source
from tests.golden_families import gguf_files
from tests.hub_calls import Done, environment, run_here, run_process
from tests.hub_server import COMMIT, Hub, serve
from tests.models import Tiny, tiny_gguf, tiny_llama, write_gguf

SHARD = "model-00001-of-00002.safetensors"
PROGRAM = [sys.executable, "-c", "from rkconvert.cli import main; main()"]
NOISE = ("pytorch_model.bin", "model.onnx", "original/consolidated.safetensors", "model.fp16.safetensors", "notes.md")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """user/tiny in two shards among files nobody needs, user/one with one GGUF file, user/many with three, user/parts
    with one in parts."""
    root = tmp_path_factory.mktemp("hub")
    tiny = tiny_llama(root / "tiny", shards=2, hidden=256, vocab_size=2048)  # larger than what is read of a header
    for name in NOISE:
        (tiny / name).parent.mkdir(exist_ok=True)
        (tiny / name).write_bytes(b"not needed" * 100)
    tiny_gguf(root / "one" / "sub" / "Tiny.Q8_0.gguf", dtype="Q8_0")
    for dtype in ("F16", "Q8_0"):
        tiny_gguf(root / "many" / f"Tiny.{dtype}.gguf", dtype=dtype)
    write_gguf(root / "parts" / "sub" / "Tiny.gguf", Tiny(), Tiny().weights(), split_max_tensors=8)
    (root / "many" / "Tiny-00001-of-00002.gguf").write_bytes(b"GGUF")
    (root / "pickled").mkdir()
    (root / "pickled" / "config.json").write_text("{}")
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    return {f"user/{folder.name}": folder for folder in root.iterdir()}


@pytest.fixture
def hub(repositories: dict[str, Path]) -> Iterator[Hub]:
    with serve(Hub(dict(repositories))) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def rkconvert(
    hub: Hub, home: Path, *arguments: str | Path, token: str = "", offline: bool = False, process: bool = False
) -> Done:
    if process:
        return run_process(PROGRAM, hub, home, *arguments)
    return run_here(main, hub, home, *arguments, token=token, offline=offline)


def refused(done: Done, code: int = 1) -> str:
    """The one sentence of a run that failed as it should."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    return lines[0]


def bundle_of(done: Done) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "rkbundle.json").read_text()))


def test_a_repository_converts_as_its_folder_does(hub: Hub, home: Path, tmp_path: Path) -> None:
    remote = bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a", process=True))
    local = bundle_of(rkconvert(hub, home, hub.repositories["user/tiny"], "-o", tmp_path / "b"))
    assert remote.name == local.name == "tiny-rk3588-w8a8"
    names = [file.name for file in local.iterdir() if file.name not in ("rkbundle.json", "README.md")]
    same, different, absent = filecmp.cmpfiles(remote, local, names, shallow=False)
    assert (sorted(same), different, absent) == (sorted(names), [], [])
    source, local_source = manifest(remote)["source"], manifest(local)["source"]
    assert source["name"] == "user/tiny"
    assert source["hub"] == {"repository": "user/tiny", "revision": "main", "commit": COMMIT, "file": ""}
    assert source["files"] == local_source["files"]
    assert "hub" not in local_source


def test_asks_only_for_what_it_needs_and_only_once(hub: Hub, home: Path, tmp_path: Path) -> None:
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    folder = hub.repositories["user/tiny"]
    needed = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - set(NOISE)
    assert set(hub.asked("GET")) | set(hub.asked("HEAD")) == needed
    hub.requests.clear()
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "b"))
    assert [request.path for request in hub.requests] == ["/api/models/user/tiny/revision/main"]


def test_dry_run_asks_for_headers_alone(hub: Hub, home: Path) -> None:
    done = rkconvert(hub, home, "user/tiny", "--dry-run", "--json")
    plan, folder = json.loads(done.stdout), hub.repositories["user/tiny"]
    shards = sorted(folder.glob("model-*.safetensors"))
    assert plan["source"]["path"] == f"user/tiny@{COMMIT[:12]}"
    assert plan["model"]["layers"] == 2
    size = sum(shard.stat().st_size for shard in shards) / 1e6
    assert plan["notes"] == [f"{size:.1f} MB are to be downloaded from user/tiny@{COMMIT[:12]}"]
    for shard in shards:
        assert len(hub.bodies(shard.name)) == 1
        assert hub.bodies(shard.name)[0].startswith("bytes=0-")
    assert not list(home.rglob("*.safetensors"))


def test_a_target_that_exists_costs_no_download(hub: Hub, home: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "tiny-rk3588-w8a8").mkdir(parents=True)
    assert "exists already" in refused(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"), 2)
    assert not list(home.rglob("*.safetensors"))


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, home: Path, tmp_path: Path, ranges: bool) -> None:
    hub.cut_after, hub.ranges = {SHARD: [1000]}, ranges
    remote = bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a", "--dtype", "fp32"))
    size = (hub.repositories["user/tiny"] / SHARD).stat().st_size
    assert hub.bodies(SHARD)[-2:] == [f"bytes=0-{size - 1}", f"bytes=1000-{size - 1}"]
    local = bundle_of(rkconvert(hub, home, hub.repositories["user/tiny"], "-o", tmp_path / "b", "--dtype", "fp32"))
    assert filecmp.cmp(remote / "model.sim.gguf", local / "model.sim.gguf", shallow=False)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_leaves_what_it_had(hub: Hub, home: Path, tmp_path: Path, end: signal.Signals) -> None:
    hub.cut_after, hub.stall = {SHARD: [200_000]}, True
    size = (hub.repositories["user/tiny"] / SHARD).stat().st_size
    home.mkdir()
    command = [*PROGRAM, "user/tiny", "-o", str(tmp_path / "a")]
    with subprocess.Popen(command, env=environment(hub, home), cwd=home, stderr=subprocess.DEVNULL) as process:
        while not parts_of(home):
            assert process.poll() is None, "the download was not held up"
            time.sleep(0.05)
        time.sleep(0.5)  # for what was sent to arrive
        process.send_signal(end)
        assert process.wait(30) == (130 if end == signal.SIGINT else -end)
    hub.released.set()
    kept = sum(file.stat().st_size for file in parts_of(home))
    assert 0 < kept <= 200_000
    assert not (tmp_path / "a").exists()
    hub.requests.clear()
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    assert f"bytes={kept}-{size - 1}" in hub.bodies(SHARD)
    assert not parts_of(home)


def parts_of(home: Path) -> list[Path]:
    return [file for file in home.rglob("*.rkconvert") if file.stat().st_size]


def test_what_arrived_damaged_is_not_kept(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.corrupt = {"model-00002-of-00002.safetensors"}
    done = rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a")
    assert done.returncode == 1
    assert "model-00002-of-00002.safetensors of user/tiny arrived damaged" in done.stderr
    hub.corrupt = set()
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))


def test_gated(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.gated, hub.allowed = {"user/tiny"}, "hf_good"
    told = refused(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    assert f"is gated: accept its conditions at {hub.url}/user/tiny" in told
    assert "HF_TOKEN" in told
    told = refused(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a", token="hf_other"))
    assert "the account of HF_TOKEN has no access yet" in told
    hub.requests.clear()
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a", token="hf_good"))
    assert {r.token for r in hub.requests if not r.path.startswith("/cdn/")} == {"hf_good"}
    assert {r.token for r in hub.requests if r.path.startswith("/cdn/")} == {""}  # the token is the hub's alone


@pytest.mark.parametrize(
    ("model", "token", "told"),
    [
        ("user/nope", "", "user/nope is neither a folder here nor a repository at"),
        ("user/nope", "hf_good", "or HF_TOKEN cannot see it"),
        ("user/tiny", "expired", "does not accept HF_TOKEN"),
        ("user/tiny@v9", "", "user/tiny has no revision v9"),
        ("user/tiny--x", "", "nor a name that a repository can have"),
        ("user/many", "", "Tiny.F16.gguf, Tiny.Q8_0.gguf"),
        ("user/many:Other.gguf", "", "user/many has no file Other.gguf; its GGUF files are: Tiny-00001-of-00002.gguf"),
        ("user/many:Tiny-00001-of-00002.gguf", "", "has no file Tiny-00002-of-00002.gguf"),
        ("user/pickled", "", "weights only as .bin files"),
    ],
)
def test_what_cannot_be_had(hub: Hub, home: Path, tmp_path: Path, model: str, token: str, told: str) -> None:
    assert told in refused(rkconvert(hub, home, model, "-o", tmp_path / "a", token=token))
    assert not (tmp_path / "a").exists()


def test_a_hub_that_fails(hub: Hub, home: Path, tmp_path: Path) -> None:
    hub.status = 500
    told = refused(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    assert "answered HTTP 500 when asked for user/tiny" in told
    gone = Hub(url="http://127.0.0.1:9")  # the discard port: nobody listens
    told = refused(rkconvert(gone, home, "user/tiny", "-o", tmp_path / "a"))
    assert "http://127.0.0.1:9 cannot be reached" in told
    told = refused(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a", offline=True))
    assert "HF_HUB_OFFLINE forbids" in told


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("user/one", "one/sub/Tiny.Q8_0.gguf"),  # the only one needs no name
        ("user/one:sub/Tiny.Q8_0.gguf@refs/pr/1", "one/sub/Tiny.Q8_0.gguf"),
        ("user/many:Tiny.F16.gguf@v1", "many/Tiny.F16.gguf"),
    ],
)
def test_a_gguf_file(hub: Hub, home: Path, tmp_path: Path, model: str, file: str) -> None:
    remote = bundle_of(rkconvert(hub, home, model, "-o", tmp_path / "a"))
    local = bundle_of(rkconvert(hub, home, hub.repositories["user/one"].parent / file, "-o", tmp_path / "b"))
    assert remote.name == local.name == "Tiny-rk3588-w8a8"
    assert filecmp.cmp(remote / "model.sim.gguf", local / "model.sim.gguf", shallow=False)
    source = manifest(remote)["source"]
    inside = file.split("/", 1)[1]
    assert source["name"] == f"{model.split('@')[0].split(':')[0]}:{inside}"
    assert source["hub"]["file"] == inside
    assert source["hub"]["revision"] == (model.split("@")[1] if "@" in model else "main")
    assert set(hub.asked("GET")) == {inside}


@pytest.mark.parametrize("named", ["", ":sub/Tiny-00003-of-00003.gguf"])
def test_a_gguf_in_parts(hub: Hub, home: Path, tmp_path: Path, named: str) -> None:
    """All parts are fetched, whichever is named; where there is no other model, none needs to be."""
    remote = bundle_of(rkconvert(hub, home, f"user/parts{named}", "-o", tmp_path / "a"))
    local = tiny_gguf(tmp_path / "Tiny.gguf")
    assert filecmp.cmp(
        remote / "model.sim.gguf",
        bundle_of(rkconvert(hub, home, local, "-o", tmp_path / "b")) / "model.sim.gguf",
        shallow=False,
    )
    files = [f"Tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert remote.name == "Tiny-rk3588-w8a8"
    assert [file["path"] for file in manifest(remote)["source"]["files"]] == files
    assert set(hub.asked("GET")) == {f"sub/{file}" for file in files}


class LocalRepository(Repository):
    """A folder with the face of a repository, which writes down what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.name, self.revision, self.commit, self.folder = "user/repo", "main", COMMIT, folder
        self.sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        self.pieces: list[tuple[int, int]] = []

    def cached(self, _file: str) -> Path | None:
        return None

    def piece(self, file: str, start: int, size: int) -> bytes:
        self.pieces.append((start, size))
        return (self.folder / file).read_bytes()[start : start + size]


def llama3_gguf(path: Path) -> Path:
    return tiny_gguf(path, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 64})  # fmt: skip


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (llama3_gguf, ["rope_freqs.weight"]),
        (partial(gguf_files.write, "phi3_longrope"), ["rope_factors_short.weight", "rope_factors_long.weight"]),
    ],
    ids=["llama3", "longrope"],
)
def test_rope_factors_behind_the_header_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: Callable[[Path], Path], names: list[str]
) -> None:
    """A plan of a GGUF file needs a few small tensors, wherever in the file they lie."""
    local = open_source(written(tmp_path / "m.gguf"))
    tensors = read_header(tmp_path / "m.gguf").tensors
    head = min(tensor.offset for tensor in tensors.values())
    monkeypatch.setattr("rkconvert.sources.hub._GGUF_HEAD", head)
    repository = LocalRepository(tmp_path)
    found = peek(HubModel(repository, Origin("user/repo", "main", COMMIT, "m.gguf"), (), ("m.gguf",)))
    assert isinstance(found, Source)
    assert found.config == local.config
    assert found.config.rope.scaling.factors
    assert repository.pieces == [(0, head), *((tensors[name].offset, tensors[name].nbytes) for name in names)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("user/repo", HubName("user/repo")),
        ("HuggingFaceTB/SmolLM2-1.7B", HubName("HuggingFaceTB/SmolLM2-1.7B")),
        ("user/repo@refs/pr/1", HubName("user/repo", None, "refs/pr/1")),
        ("user/repo:a b/x.Q4_0.gguf", HubName("user/repo", "a b/x.Q4_0.gguf")),
        ("user/repo:x.gguf@v1.0", HubName("user/repo", "x.gguf", "v1.0")),
        ("./user/repo", None),
        ("../repo", None),
        ("/user/repo", None),
        ("user/repo/", None),
        ("user", None),
        ("a/b/c", None),
        ("models/tiny.gguf", None),  # a path with a typing mistake
        ("models/.hidden", None),
        ("~/repo", None),
        ("", None),
    ],
)
def test_parse(text: str, wanted: HubName | None) -> None:
    assert parse(text) == wanted
    if wanted is not None:
        assert str(wanted) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf:user/repo", "user/repo"),
        ("hf:user/repo.gguf:x.gguf@v1", "user/repo.gguf:x.gguf@v1"),
        ("https://huggingface.co/user/repo", "user/repo"),
        ("https://huggingface.co/user/repo/tree/v2", "user/repo@v2"),
        ("https://huggingface.co/user/repo/blob/main/a%20b/x.gguf", "user/repo:a b/x.gguf@main"),
    ],
)
def test_names_that_adopt_takes_and_addresses_of_pages(text: str, wanted: str) -> None:
    assert str(parse(text)) == wanted


@pytest.mark.parametrize("text", ["hf:", "hf:user", "hf:../repo", "hf:user/repo@", "https://huggingface.co/user/.."])
def test_names_that_are_surely_meant_for_the_hub_and_none(text: str) -> None:
    with pytest.raises(UsageError, match="names no model on the hub: give USER/REPO"):
        parse(text)


def test_only_gguf_files_have_names() -> None:
    with pytest.raises(UsageError, match="only a GGUF file can be named behind ':'"):
        parse("user/repo:model.safetensors")


@pytest.mark.parametrize("file", ["config.json", SHARD])
def test_an_etag_is_not_a_path(hub: Hub, home: Path, tmp_path: Path, file: str) -> None:
    hub.etags = {file: "../../../../escaped"}
    done = rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a")
    assert f"{hub.url} gives the ETag '../../../../escaped' for {file} of user/tiny: is HF_" in done.stderr
    assert done.returncode == 1 and not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    ("names", "listed", "told"),
    [
        ([f"LICENSE.{n}" for n in range(65)], {}, "has 65 files that are called as licences and notices"),
        (["NOTICE"], {"NOTICE": 17 << 20}, "NOTICE of user/told has 17.8 MB, where 17 MB are the most"),
        (["COPYING"], {"COPYING": 3}, "lists COPYING of user/told with 3 bytes and sends 4: is HF_ENDPOINT a hub?"),
        ([], {"config.json": 3}, "lists config.json of user/told with 3 bytes and sends"),
    ],
)
def test_licences_without_bound(
    hub: Hub, home: Path, tmp_path: Path, names: list[str], listed: dict[str, int], told: str
) -> None:
    folder = tiny_llama(tmp_path / "told")
    for name in names:
        (folder / name).write_text("text")
    hub.repositories["user/told"], hub.listed = folder, listed
    done = rkconvert(hub, home, "user/told", "-o", tmp_path / "a")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("Error: ") and told in done.stderr
    assert not [path for path in hub.asked("GET") if path in names] and not (tmp_path / "a").exists()


def test_what_is_downloaded_lies_where_other_tools_look_for_it(hub: Hub, home: Path, tmp_path: Path) -> None:
    bundle_of(rkconvert(hub, home, "user/tiny", "-o", tmp_path / "a"))
    found = snapshot_download("user/tiny", cache_dir=home / "hub", local_files_only=True)
    assert (Path(found) / "config.json").read_bytes() == (hub.repositories["user/tiny"] / "config.json").read_bytes()
    assert all(file.is_symlink() for file in Path(found).iterdir())
