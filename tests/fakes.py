"""Shared libraries compiled from C at test time: the scripted librkllmrt, and probes of the header."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

from rk3588 import bundle
from tests.rkllm_headers import HEADERS

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "runtime" / "sim" / "include"
FAKE = Path(__file__).with_name("fake_rkllm.c")
_compiled: dict[tuple[str, ...], bytes] = {}  # by release and flags
TEMPLATE = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"


def compile_library(source: Path, target: Path, *flags: str, include: Path = INCLUDE) -> Path:
    """A shared library out of one C file that includes ``rkllm.h``, 1.1.1's unless ``include`` has another."""
    warnings = ["-Wall", "-Wextra", "-Werror"]
    command = ["gcc", "-std=gnu11", *warnings, "-shared", "-fPIC", "-pthread", "-I", str(include), *flags]
    done = subprocess.run([*command, "-o", str(target), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def fake_rkllm(folder: Path, *flags: str, release: str = "1.1.1") -> Path:
    """The scripted librkllmrt of a release; its model files are scripts (see fake_rkllm.c)."""
    which = [f"-DRELEASE={release.replace('.', '')}"]
    if not any(flag.startswith("-DVERSION=") for flag in flags):
        which.append(f'-DVERSION="{release}"')
    path = folder / "librkllmrt.so"
    key = (release, *flags)
    if key not in _compiled:
        _compiled[key] = compile_library(FAKE, path, *which, *flags, include=HEADERS[release].parent).read_bytes()
    else:
        path.unlink(missing_ok=True)  # it may be loaded: what lies in its place must be another file
        path.write_bytes(_compiled[key])
    return path


def journal(library: Path) -> list[str]:
    """What the scripted library was called with since its last rkllm_init."""
    door = ctypes.CDLL(str(library)).fake_journal
    door.restype = ctypes.c_char_p
    text: bytes = door()
    return text.decode().splitlines()


def scripted_bundle(folder: Path, script: str, template: str | None = TEMPLATE) -> Path:
    """A bundle for a board, whose model is a script for the scripted library; it has no vocabulary."""
    with bundle.new_folder(folder, replace=True) as new:
        (new / bundle.NPU_MODEL).write_text(script + "\n")
        if template is not None:
            (new / bundle.TEMPLATE).write_text(template)
        manifest = {"name": "Scripted", "dtype": "w8a8", "target_platform": "rk3588", "model": {}, "source": {}}
        bundle.write_manifest(new, {**manifest, "tokenizer": {}, "artifacts": {"rk3588": bundle.NPU_MODEL}})
    return folder


def bundle_for_both(folder: Path, source: Path, script: str, **more: Any) -> Path:
    """The bundle ``source`` with a model for an NPU beside its own, and other entries of its manifest."""
    with bundle.new_folder(folder) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        (new / bundle.NPU_MODEL).write_text(script + "\n")
        manifest = {key: value for key, value in bundle.read(source).manifest.items() if key not in ("schema", "files")}
        artifacts = {**manifest["artifacts"], "rk3588": bundle.NPU_MODEL}
        bundle.write_manifest(new, {**manifest, "artifacts": artifacts, **more})
    return folder
