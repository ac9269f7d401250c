"""Bundles: written whole or not at all, read with suspicion, verified to the byte."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rk3588 import bundle
from rk3588.commands.bundle import bundle as command
from rk3588.errors import BundleError, NoSuchBundle, TargetError, TargetTaken

MANIFEST: dict[str, Any] = {
    "name": "Tiny", "dtype": "w8a8", "target_platform": "rk3588", "model": {"layers": 2}, "source": {"files": []},
    "tokenizer": {"bos_token": "<s>"}, "artifacts": {"sim": "model.sim.gguf"},
}  # fmt: skip


def write(final: Path, *, replace: bool = False, **changes: Any) -> Path:
    with bundle.new_folder(final, replace=replace) as folder:
        (folder / "model.sim.gguf").write_bytes(b"weights" * 1000)
        (folder / "lora").mkdir()
        (folder / "lora" / "a.bin").write_bytes(b"")
        (folder / "chat_template.jinja").write_text("{{ messages }}é", encoding="utf-8")
        bundle.write_manifest(folder, {**MANIFEST, **changes})
    return final


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write(tmp_path / "Tiny-rk3588-w8a8")


def edit(path: Path, **changes: Any) -> None:
    where = path / bundle.MANIFEST
    where.write_text(json.dumps({**json.loads(where.read_text()), **changes}))


def test_what_is_written_is_read(made: Path) -> None:
    found = bundle.read(made)
    assert (found.name, found.dtype, found.chat_template) == ("Tiny", "w8a8", "{{ messages }}é")
    assert found.sim_model == made / "model.sim.gguf"
    assert found.npu_model is None
    assert [(f["path"], f["size"]) for f in found.manifest["files"]] == [
        ("chat_template.jinja", 16), ("lora/a.bin", 0), ("model.sim.gguf", 7000),
    ]  # fmt: skip
    read: list[int] = []
    bundle.verify(found, read.append)
    assert sum(read) == 7016


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), bundle.new_folder(tmp_path / "new") as folder:
        (folder / "model.sim.gguf").write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    for name in ("new/and/deep/b", "mine/new/b", "mine/b"):  # folders made on the way go, others stay
        with pytest.raises(RuntimeError), bundle.new_folder(tmp_path / name):
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_an_existing_bundle_is_replaced_only_on_request_and_only_by_a_whole_one(made: Path) -> None:
    before = (made / bundle.MANIFEST).read_bytes()
    with pytest.raises(TargetError, match=r"exists already: .*--overwrite"):
        write(made)
    with pytest.raises(ZeroDivisionError), bundle.new_folder(made, replace=True):
        _ = 1 / 0
    assert (made / bundle.MANIFEST).read_bytes() == before
    write(made, replace=True, name="Other")
    assert bundle.read(made).name == "Other"
    assert [p.name for p in made.parent.iterdir()] == [made.name]


def test_two_that_make_the_same_bundle(tmp_path: Path) -> None:
    """The second is refused while the first writes, and where it ends after the first; with --overwrite neither is."""
    final = tmp_path / "Tiny-rk3588-w8a8"
    with bundle.new_folder(final), pytest.raises(TargetTaken, match="another process is writing"):
        write(final)
    assert list(tmp_path.iterdir()) == [final]
    final.rmdir()
    with bundle.new_folder(tmp_path / f"{final.name}.v2"):  # its temporary folder's name begins alike
        write(final)
    shutil.rmtree(final)
    with pytest.raises(TargetTaken, match="exists already"), bundle.new_folder(final):
        final.mkdir()
        (final / "theirs").touch()
    assert [path.name for path in final.iterdir()] == ["theirs"]
    with bundle.new_folder(final, replace=True):
        write(final, replace=True)
    assert not list(final.iterdir()) and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(TargetError, match="cannot write to"):
        write(tmp_path / "new")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="cannot write to"):
        write(tmp_path / "file" / "new")


BAD_LORAS: list[Any] = [
    None,
    [],
    {"mode": "adapter"},
    {"mode": "both", "adapters": []},
    {"mode": "merge", "adapters": [{"name": "a"}]},
    {"mode": "merge", "adapters": [{"name": "a", "scale": True}]},
    {"mode": "merge", "adapters": [{"name": "a", "scale": 1, "artifacts": {"sim": "lora/a.bin"}}]},
    {"mode": "adapter", "adapters": [{"name": "a", "scale": 1}]},
    {"mode": "adapter", "adapters": [{"name": "a", "scale": float("nan"), "artifacts": {}}]},
    {"mode": "adapter", "adapters": [{"name": 1, "scale": 1, "artifacts": {}}]},
    {"mode": "adapter", "adapters": [{"name": "a", "scale": 1, "artifacts": {"sim": "../a.bin"}}]},
    {"mode": "adapter", "adapters": [{"name": "a", "scale": 1, "artifacts": {"sim": None}}]},
]


BAD_ROTATIONS: list[Any] = [None, [], "R1", {}, {"kind": "hadamard"}, {"kind": 1, "basis": "x"}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"name": None}, "'name' is missing or not a str"),
        ({"artifacts": []}, "'artifacts' is missing or not a dict"),
        ({"artifacts": {"sim": "other.gguf"}}, "the artifact for sim .'other.gguf'. is not among its files"),
        ({"artifacts": {"sim": ["x"]}}, "the artifact for sim"),
        ({"files": [{"path": "model.sim.gguf"}]}, "needs path, size and sha256"),
        ({"files": ["model.sim.gguf"]}, "needs path, size and sha256"),
        ({"files": [{"path": "../x", "size": 1, "sha256": ""}]}, "'../x' is not a path inside the bundle"),
        ({"files": [{"path": "/etc/passwd", "size": 1, "sha256": ""}]}, "is not a path inside the bundle"),
        ({"files": [{"path": "a\0b", "size": 1, "sha256": ""}]}, "is not a path inside the bundle"),
        ({"files": [{"path": "x" * 5000, "size": 1, "sha256": ""}]}, "x' is not a path inside the bundle"),
        ({"files": [{"path": "\ud800", "size": 1, "sha256": ""}]}, "is not a path inside the bundle"),
        ({"files": [{"path": "", "size": 1, "sha256": ""}]}, "is not a path inside the bundle"),
        ({"rotation": []}, "'rotation' is no mapping with 'kind'"),
        ({"rotation": {"basis": "x"}}, "'rotation' is no mapping with 'kind'"),
        ({"smoothing": {"alpha": "much"}}, "'smoothing' is no mapping with 'alpha'"),
        *[({"lora": lora}, "'lora' needs a mode") for lora in BAD_LORAS],
        *[({"rotation": rotation}, "'rotation' needs a kind and a basis") for rotation in BAD_ROTATIONS],
    ],
)
def test_manifests_that_are_refused(made: Path, changes: dict[str, Any], message: str) -> None:
    edit(made, **changes)
    with pytest.raises(BundleError, match=message):
        bundle.read(made)


def test_the_basis_of_hidden_states(made: Path) -> None:
    assert bundle.read(made).basis == ""
    edit(made, rotation={"kind": "hadamard", "basis": "hadamard-0123456789abcdef"})
    assert bundle.read(made).basis == "hadamard-0123456789abcdef"


def test_adapters_by_name(made: Path) -> None:
    assert bundle.read(made).loras == {}
    edit(made, lora={"mode": "adapter", "adapters": [
        {"name": "a", "scale": 0.5, "artifacts": {"sim": "lora/a.bin"}}, {"name": "b", "scale": 1, "artifacts": {}},
    ]})  # fmt: skip
    assert bundle.read(made).loras == {
        "a": bundle.Lora("a", 0.5, made / "lora/a.bin", None), "b": bundle.Lora("b", 1, None, None),
    }  # fmt: skip
    edit(made, lora={"mode": "merge", "adapters": [{"name": "a", "scale": 0.5}]})
    assert bundle.read(made).loras == {}


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_manifests_that_are_none(made: Path, text: str) -> None:
    (made / bundle.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"rkbundle\.json"):
        bundle.read(made)


def test_files_that_are_not_as_listed(made: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchBundle, match=r"there is no .*nowhere: give a folder that rkconvert wrote"):
        bundle.read(tmp_path / "nowhere")
    model = made / "model.sim.gguf"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=r"model\.sim\.gguf has 6999 bytes, rkbundle\.json says 7000"):
        bundle.read(made)
    model.write_bytes(whole[:-1] + b"!")
    with pytest.raises(BundleError, match=r"model\.sim\.gguf has changed: its SHA-256 is"):
        bundle.verify(bundle.read(made))
    model.unlink()
    with pytest.raises(BundleError, match=r"is incomplete: model\.sim\.gguf is missing"):
        bundle.read(made)


def test_show_and_verify(made: Path) -> None:
    shown = CliRunner().invoke(command, ["show", str(made)])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[:4] == [
        "name                 Tiny", "dtype                w8a8", "target_platform      rk3588", "model",
    ]  # fmt: skip
    assert "        0.0 MB  model.sim.gguf" in shown.stdout.splitlines()
    adapter = {"name": "a", "scale": 0.5, "targets": ["q_proj", "v_proj"] * 10, "artifacts": {"sim": "lora/a.bin"}}
    edit(made, lora={"mode": "adapter", "adapters": [adapter, {"name": "b", "scale": 1, "artifacts": {}}]})
    lines = CliRunner().invoke(command, ["show", str(made)]).stdout.splitlines()
    start = lines.index("  adapters")
    assert lines[start + 1 : start + 3] == ["    - name                 a", "      scale                0.5"]
    assert lines[start + 4 : start + 7] == [
        "      artifacts", "        sim                  lora/a.bin", '    {"name": "b", "scale": 1, "artifacts": {}}',
    ]  # fmt: skip
    as_json = CliRunner().invoke(command, ["show", "--json", str(made)])
    assert json.loads(as_json.stdout) == bundle.read(made).manifest
    verified = CliRunner().invoke(command, ["verify", str(made)])
    assert (verified.exit_code, verified.stdout) == (0, f"{made}\n")
    assert verified.stderr == "Tiny (w8a8): all 3 files are as they were written\n"
    (made / "model.sim.gguf").write_bytes(b"weighty" * 1000)
    changed = CliRunner().invoke(command, ["verify", str(made)])
    assert (changed.stdout, type(changed.exception)) == ("", BundleError)


UNLISTED = ["chat_template.jinja", "tokenizer.gguf", "generation_config.json", "lora/b.gguf", "other/x", ".hidden"]


@pytest.mark.parametrize("name", UNLISTED)
def test_what_the_manifest_does_not_list_is_named_and_not_used(made: Path, name: str) -> None:
    listed = json.loads((made / bundle.MANIFEST).read_text())["files"]
    edit(made, files=[entry for entry in listed if entry["path"] != name])
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).write_text("{{ strange }}")
    found = bundle.read(made)
    shown = "other/" if name == "other/x" else name
    with pytest.raises(BundleError, match=f"a file that rkbundle.json does not list, .* it is: {shown}; remove it"):
        bundle.verify(found)
    with pytest.raises(BundleError, match=f"{name} is not listed in rkbundle.json, .*: remove it, or convert again"):
        found.file(name)
    if name == bundle.TEMPLATE:
        with pytest.raises(BundleError, match="is not listed"):
            _ = found.chat_template


def test_what_a_download_keeps_beside_a_bundle_is_no_part_of_it(made: Path) -> None:
    (made / ".gitattributes").write_text("*.gguf filter=lfs")
    (made / ".cache" / "huggingface").mkdir(parents=True)
    bundle.verify(bundle.read(made))
    assert bundle.read(made).file("tokenizer.gguf") is None


def test_links_and_fifos_in_a_bundle(made: Path, tmp_path: Path) -> None:
    template = made / bundle.TEMPLATE
    whole = template.read_bytes()
    (tmp_path / "elsewhere").write_bytes(whole)
    template.unlink()
    template.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"chat_template.jinja is a link that leaves its folder"):
        bundle.read(made)
    template.unlink()
    os.mkfifo(template)
    with pytest.raises(BundleError, match=r"chat_template.jinja is a FIFO"):
        bundle.read(made)
    template.unlink()
    template.write_bytes(whole)
    (made / bundle.MANIFEST).rename(tmp_path / "manifest")
    (made / bundle.MANIFEST).symlink_to(tmp_path / "manifest")
    with pytest.raises(BundleError, match=r"rkbundle.json is a link that leaves its folder"):
        bundle.read(made)
    (made / bundle.MANIFEST).unlink()
    with (made / bundle.MANIFEST).open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match=r"rkbundle.json has 1073.7 MB, where 17 MB are the most"):
        bundle.read(made)


def test_a_bundle_in_the_hubs_cache(made: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--user--tiny"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    (snapshot / "lora").mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(path for path in made.rglob("*") if path.is_file()):
        file.rename(blobs / str(number))
        inside = snapshot / file.relative_to(made)
        inside.symlink_to(os.path.relpath(blobs / str(number), inside.parent))
    found = bundle.read(snapshot)
    bundle.verify(found)
    assert found.chat_template == "{{ messages }}é"


MEANT: dict[str, tuple[str, str]] = {
    "a dtype mistyped": ("out/Tiny-rk3588-w8a9", "there is no {0}/out/Tiny-rk3588-w8a9: did you mean {0}/out/Tiny-"),
    "a folder with bundles": ("out", "{0}/out is a folder with bundles: give one of them: Tiny-rk3588-w8a8"),
    "a file of a bundle": ("out/Tiny-rk3588-w8a8/model.sim.gguf", "is a file of a bundle: give the bundle, which is"),
    "a model": ("model", "{0}/model is not a bundle but a model to make one from: rkconvert {0}/model -o out"),
    "a GGUF file": ("m.gguf", "{0}/m.gguf is not a bundle but a model to make one from: rkconvert {0}/m.gguf -o out"),
    "a .rkllm": ("m.rkllm", "{0}/m.rkllm is a .rkllm alone: give a bundle, which `rk3588 adopt {0}/m.rkllm --base"),
    "an empty folder": ("empty", "{0}/empty is not a bundle: it has no rkbundle.json (rkconvert writes one)"),
    "a text of any length": ("x" * 5000, "cannot be the path of a bundle"),
    "a zero": ("a\0b", "cannot be the path of a bundle"),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANT)
def test_what_was_meant(tmp_path: Path, case: str) -> None:
    write(tmp_path / "out" / "Tiny-rk3588-w8a8")
    for name in ("model/config.json", "m.gguf", "m.rkllm", "empty/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    given, sentence = MEANT[case]
    with pytest.raises(BundleError) as caught:
        bundle.read(tmp_path / given)
    assert sentence.format(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 1000


def test_a_bundles_words_do_not_reach_the_terminal_raw(made: Path) -> None:
    hostile = "Tiny\x1b[2J\x9b\u202e"
    edit(made, name=hostile, model={"family": "\x1b]0;title\x07", "list": [{"\x9d": "\x1b"}]})
    for arguments in (["show"], ["show", "--json"], ["verify"]):
        done = CliRunner().invoke(command, [*arguments, str(made)])
        assert done.exit_code == 0
        assert not set("\x1b\x9b\x07\x9d\u202e") & set(done.stdout + done.stderr)
    as_json = CliRunner().invoke(command, ["show", "--json", str(made)])
    assert json.loads(as_json.stdout)["name"] == hostile
