"""The bundle's part in a release: which of its models runs there, which files go along, and whether it can chat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path, PurePosixPath

from rk3588 import bundle as bundles
from rk3588 import compatibility, runtime
from rk3588.bundle import Bundle
from rk3588.errors import DeployError, UsageError

from .findings import Need
from .release_files import File, from_text


def check_template(bundle: Bundle) -> None:
    """A release proves itself by answering a chat, which without a template it cannot."""
    if bundle.chat_template is None:
        raise DeployError(
            f"{bundle.path} has no {bundles.TEMPLATE}, so the daemon could not chat with it: convert the model again "
            "with --chat-template FILE"
        )


def kind_of(simulated: bool) -> str:
    return runtime.SIM if simulated else runtime.NPU


def model_of(bundle: Bundle, simulated: bool) -> Path:
    """The model that this kind of runtime runs; UsageError, in one sentence, for a bundle without one."""
    found = runtime.model_for(bundle, kind_of(simulated))
    if found:
        return found
    if simulated:
        raise UsageError(f"{bundle.path} has only a model for an NPU: give --runtime FILE, Rockchip's librkllmrt.so")
    raise UsageError(
        f"{bundle.path} has only a model for the simulated runtime, which no NPU can run: give --runtime sim to run it "
        "on the board's CPU, or a bundle that Rockchip's toolkit converted"
    )


def with_runtime(need: Need, bundle: Bundle, version: str) -> Need:
    """``need`` with what has to fit: a runtime's version ("": not said yet), and the bundle's model for an NPU."""
    wrote = compatibility.toolkit_of(bundle)
    said = (bundle.manifest["source"].get("name"), bundle.manifest.get("adopted", {}).get("file"))
    return replace(
        need,
        runtime=version,
        toolkit=wrote.release if wrote else "",
        claimed=bool(wrote and wrote.claimed),
        model=" ".join([bundle.name, *(name for name in said if isinstance(name, str))]),
    )


def bundle_files(bundle: Bundle, simulated: bool) -> list[File]:
    """The bundle without what is for the other kind of runtime; its manifest says so, too."""
    manifest = runtime.manifest_for(bundle, kind_of(simulated))
    entries = manifest["files"]
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    if len(entries) == len(bundle.manifest["files"]):
        text = (bundle.path / bundles.MANIFEST).read_text(encoding="utf-8")
    files = [
        File(f"bundle/{PurePosixPath(entry['path'])}", bundle.path / entry["path"], entry["size"], entry["sha256"])
        for entry in entries
    ]
    return [*files, from_text(f"bundle/{bundles.MANIFEST}", text)]
