"""The artifact folder that moves between host and board: ``rkbundle.json`` and the files it names.

A bundle is written into a temporary folder beside its place and renamed there whole, so it exists complete or not
at all. What the manifest says was done was done; what was not measured is absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from . import files as reading
from . import rkllm_file, sampling
from .errors import BundleError, NoSuchBundle
from .mistaken import listed, no_bundle
from .new_folder import new_folder as new_folder
from .new_folder import sync

MANIFEST = "rkbundle.json"
SCHEMA = 1
SIM_MODEL = "model.sim.gguf"
NPU_MODEL = "model.rkllm"
TEMPLATE = "chat_template.jinja"
VOCABULARY = "tokenizer.gguf"
_BLOCK = 1 << 20
_MOST_CONTEXT = 1 << 30  # tokens, as the runtime reads them
_MOST_MANIFEST = 16 << 20
_KEPT_BESIDE = (".git", ".gitattributes", ".gitignore", ".cache", ".DS_Store")


@dataclass(frozen=True)
class Lora:
    """An adapter beside a bundle's model, to be chosen at run time: a file for each runtime that it was made for."""

    name: str
    scale: float  # what it is meant to be used with
    sim: Path | None
    npu: Path | None


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read and is of the right form."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def dtype(self) -> str:
        return str(self.manifest["dtype"])

    @property
    def sim_model(self) -> Path | None:
        """``model.sim.gguf``, for the simulated runtime, where the bundle has it."""
        return self._artifact("sim")

    @property
    def npu_model(self) -> Path | None:
        """``model.rkllm``, for a real NPU, where the bundle has it; BundleError if that is plainly something else."""
        path = self._artifact("rk3588")
        if path is not None:
            _check_npu_model(path)
        return path

    @property
    def loras(self) -> dict[str, Lora]:
        """By name, the adapters that can be chosen; one that was merged into the model is none."""
        lora = self.manifest.get("lora")
        found = {}
        for entry in lora["adapters"] if lora and lora["mode"] == "adapter" else ():
            files = {target: self.path / name for target, name in entry["artifacts"].items()}
            found[entry["name"]] = Lora(entry["name"], entry["scale"], files.get("sim"), files.get("rk3588"))
        return found

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained for, where the manifest says it."""
        return self.manifest["model"].get("context_length") or None

    @property
    def sampling(self) -> dict[str, Any]:
        """What the model asks for, by the names of its generation_config.json; empty where it asks for nothing."""
        return dict(self.manifest.get("sampling") or {})

    @property
    def basis(self) -> str:
        """That of hidden states and input embeddings; "": the original model's, for its weights were not rotated."""
        return str(self.manifest.get("rotation", {}).get("basis", ""))

    @property
    def chat_template(self) -> str | None:
        path = self.file(TEMPLATE)
        return reading.read_text(path, reading.TEMPLATE, self.path, BundleError) if path else None

    @property
    def vocabulary(self) -> Path | None:
        """The file that tokens are counted with."""
        return self.file(VOCABULARY) or self.sim_model

    def file(self, name: str) -> Path | None:
        """The file of the bundle that is called ``name``, if it has one.

        BundleError for one that lies there and is not in the manifest: nobody knows who put it there.
        """
        path = self.path / name
        if any(entry["path"] == name for entry in self.manifest["files"]):
            return path
        if reading.exists(path):
            raise BundleError(
                f"{path} is not listed in {MANIFEST}, so it did not come with the bundle: remove it, or convert again "
                "from a model that has it"
            )
        return None

    def _artifact(self, target: str) -> Path | None:
        name = self.manifest["artifacts"].get(target)
        return self.path / name if name else None


def size(folder: Path) -> int:
    """Bytes of all the files in a bundle's folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file in hex; ``progress`` is told the size of each block read."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(block[:size])
            if progress:
                progress(size)
    return digest.hexdigest()


_FORM: dict[str, type] = {
    "name": str, "dtype": str, "target_platform": str, "model": dict, "source": dict, "tokenizer": dict,
    "artifacts": dict, "files": list,
}  # fmt: skip


def read(path: str | os.PathLike[str]) -> Bundle:
    """Open the bundle at ``path``: the manifest's form and the files' sizes are checked, hashes are not."""
    folder = Path(path)
    where = folder / MANIFEST
    if "\0" in str(folder) or not reading.exists(where):
        raise NoSuchBundle(no_bundle(folder, MANIFEST))
    try:
        manifest = reading.read_json(where, _MOST_MANIFEST, folder, BundleError)
    except FileNotFoundError:
        raise BundleError(f"{where} is a link that leads nowhere: copy or convert it again") from None
    _check_form(where, manifest)
    for entry in manifest["files"]:
        file = folder / entry["path"]
        try:
            with reading.opened(file, folder, BundleError) as open_file:
                size = os.fstat(open_file.fileno()).st_size
        except FileNotFoundError:
            raise BundleError(f"{folder} is incomplete: {entry['path']} is missing; copy or convert it again") from None
        if size != entry["size"]:
            raise BundleError(f"{file} has {size} bytes, {MANIFEST} says {entry['size']}; copy or convert it again")
    return Bundle(folder, manifest)


def _check_form(where: Path, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{where} has schema {found!r}, this version reads {SCHEMA}: update rk3588 or convert again")
    for key, kind in _FORM.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{where}: {key!r} is missing or not a {kind.__name__}")
    listed = set()
    for entry in manifest["files"]:
        if not (
            isinstance(entry, dict)
            and isinstance(entry.get("path"), str)
            and isinstance(entry.get("size"), int)
            and isinstance(entry.get("sha256"), str)
        ):
            raise BundleError(f"{where}: every entry of 'files' needs path, size and sha256")
        # A manifest may come from anywhere: it must not point outside its folder.
        if not all(map(reading.is_name, entry["path"].split("/"))):
            raise BundleError(f"{where}: {entry['path'][:300]!r} is not a path inside the bundle")
        listed.add(entry["path"])
    for target, name in manifest["artifacts"].items():
        if not isinstance(name, str) or name not in listed:
            raise BundleError(f"{where}: the artifact for {target} ({name!r}) is not among its files")
    context = manifest["model"].get("context_length", 0)
    if type(context) is not int or not 0 <= context <= _MOST_CONTEXT:
        raise BundleError(f"{where}: the model's context_length is {context!r:.40}, expected a number of tokens")
    if not sampling.is_valid(manifest.get("sampling", {})):
        raise BundleError(f"{where}: 'sampling' holds what is no setting, or no value of one: convert the model again")
    if "adopted" in manifest and not _is_adopted(manifest["adopted"]):
        raise BundleError(f"{where}: 'adopted' needs claims, each with its value and who made it: adopt it again")
    for name, kind, keys in (("rotation", str, ("kind", "basis")), ("smoothing", float, ("alpha",))):
        entry = manifest.get(name)
        if name in manifest and not (isinstance(entry, dict) and all(isinstance(entry.get(k), kind) for k in keys)):
            what = "a kind and a basis, which are texts" if name == "rotation" else "an alpha, which is a number"
            raise BundleError(f"{where}: {name!r} needs {what}: convert the model again")
    if "lora" in manifest and not _is_lora(manifest["lora"], listed):
        raise BundleError(
            f"{where}: 'lora' needs a mode (adapter or merge) and adapters, each with its name, scale and, where it is "
            "not merged, its artifacts among the bundle's files"
        )


def _is_adopted(adopted: Any) -> bool:
    claims = adopted.get("claims") if isinstance(adopted, dict) else None
    return isinstance(claims, dict) and all(isinstance(c, dict) and {"value", "by"} <= set(c) for c in claims.values())


def _is_lora(lora: Any, listed: set[str]) -> bool:
    if not isinstance(lora, dict) or lora.get("mode") not in ("adapter", "merge"):
        return False
    entries = lora.get("adapters")
    return isinstance(entries, list) and all(_is_adapter(entry, lora["mode"], listed) for entry in entries)


def _is_adapter(entry: Any, mode: str, listed: set[str]) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    scale: Any = entry.get("scale")
    if type(scale) not in (int, float) or not -1e6 < scale < 1e6:
        return False
    artifacts = entry.get("artifacts")
    if mode == "merge":
        return artifacts is None
    return isinstance(artifacts, dict) and all(isinstance(a, str) and a in listed for a in artifacts.values())


def verify(bundle: Bundle, progress: Callable[[int], None] | None = None) -> None:
    """Hash every file the manifest names; BundleError says which one changed, or which it does not name."""
    for entry in bundle.manifest["files"]:
        found = sha256(bundle.path / entry["path"], progress)
        if found != entry["sha256"]:
            raise BundleError(
                f"{bundle.path / entry['path']} has changed: its SHA-256 is {found[:12]}…, {MANIFEST} says "
                f"{entry['sha256'][:12]}…; copy or convert it again"
            )
    if others := unlisted(bundle):
        one = len(others) == 1
        raise BundleError(
            f"{bundle.path} has {'a file' if one else f'{len(others)} files'} that {MANIFEST} does not list, so nobody "
            f"can say what {'it is' if one else 'they are'}: {listed(others)}; remove {'it' if one else 'them'}, or "
            "convert again"
        )


def unlisted(bundle: Bundle) -> list[str]:
    """Whatever lies in the bundle and is not in its manifest, by its path; links and empty folders as well.

    What a version control or a download keeps beside it (``.git``, ``.gitattributes``, ``.cache``) is not meant.
    """
    known = {entry["path"] for entry in bundle.manifest["files"]} | {MANIFEST}
    folders = {str(parent) for path in known for parent in PurePosixPath(path).parents}
    found = []
    for place, inside, names in os.walk(bundle.path):
        here = PurePosixPath(Path(place).relative_to(bundle.path).as_posix())
        if place == str(bundle.path):
            inside[:] = [name for name in inside if name not in _KEPT_BESIDE]
            names = [name for name in names if name not in _KEPT_BESIDE]
        strange = [name for name in inside if str(here / name) not in folders]
        inside[:] = [name for name in inside if name not in strange]
        found += [f"{here / name}/" for name in strange]
        found += [str(here / name) for name in names if str(here / name) not in known]
    return sorted(found)


def _check_npu_model(path: Path) -> None:
    """Nobody outside Rockchip can read a .rkllm, but what is not one can be told."""
    try:
        what = rkllm_file.other_kind(rkllm_file.ends(path).head)
    except OSError:
        return  # whoever opens it next says why
    if what:
        raise BundleError(f"{path} is no .rkllm but {what}: no NPU can run it; convert with rkllm-toolkit")


def write_manifest(
    folder: Path,
    manifest: dict[str, Any],
    progress: Callable[[int], None] | None = None,
    known: Mapping[str, str] | None = None,
) -> None:
    """Hash and sync every file in ``folder``, then write ``rkbundle.json`` with them listed.

    ``progress`` is told the size of each block hashed, and may raise to give up. ``known`` has the SHA-256 of files
    that were hashed when they were written, by their path in the folder.
    """
    files = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        sync(path)
        name = path.relative_to(folder).as_posix()
        digest = (known or {}).get(name) or sha256(path, progress)
        files.append({"path": name, "size": path.stat().st_size, "sha256": digest})
    text = json.dumps({"schema": SCHEMA, **manifest, "files": files}, indent=2, ensure_ascii=False) + "\n"
    where = folder / MANIFEST
    where.write_text(text, encoding="utf-8", errors="replace")  # what it was made of may be called by other bytes
    sync(where)
