"""``convert(plan)``: the one function behind the command line. Bundles appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rk3588 import bundle, files, hostlib, quant
from rk3588.errors import CheckpointError, TargetError
from rk3588.hostlib import SimModel

from . import generating
from .adapters import in_bundle
from .artifact import hybrid, pipeline
from .artifact.artifact_file import ArtifactFile, write_error
from .artifact.header import make_header, tokenizer_metadata, write_tokenizer
from .artifact.layout import Artifact
from .bundle_texts import make_card, make_manifest, tokenizer_files
from .calibration import REFERENCE, Dataset, Generate
from .cards.rotated import rotated_card
from .estimate import disk_bytes
from .plan import Plan, plan_artifacts
from .rotation import emit
from .rotation.prepare import prepared
from .signals import deferred_interrupts
from .sources.base import CARD, Source
from .toolkit import build as npu

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


def no_progress(_what: str, _done: int, _total: int) -> None:
    pass


def convert(plan: Plan, progress: Progress = no_progress) -> list[Path]:
    """Write the bundles of ``plan`` and return their folders, in the plan's order.

    Raises CheckpointError for a source that is not what it should be, TargetError for a place that cannot be
    written to. Ctrl-C is KeyboardInterrupt. In all cases nothing half-written stays behind.
    """
    if plan.for_sim:
        hostlib.library()  # fails now if it is missing, not after minutes of reading
    plan = with_dataset(plan, progress)
    finals = [plan.folder(artifact) for artifact in plan.artifacts]
    with deferred_interrupts() as check, ExitStack() as stack:
        folders = [stack.enter_context(bundle.new_folder(final, replace=plan.overwrite)) for final in finals]
        _check_space(plan)
        try:
            digests: dict[Path, str] = {}  # SHA-256 of what was hashed on the way
            plan = prepared(plan, _checked(progress, check))
            if plan.for_sim:
                step = _progress_counter("measure", plan.source.nbytes, progress, check)
                plan = hybrid.choose_grouped_layers(plan, step)
                digests = _write_artifacts(plan, folders, progress, check)
            if plan.board:
                for artifact, folder in zip(plan.artifacts, folders, strict=True):
                    npu.write_model(plan, plan.board, artifact, folder, progress, check)
            _finish_bundles(plan, folders, digests, progress, check)
        except OSError as error:
            raise write_error(error, Path(error.filename or folders[0] / bundle.SIM_MODEL)) from error
        check()
    return finals


def write_checkpoint(plan: Plan, progress: Progress = no_progress) -> dict[str, Any]:
    """Write the Hugging Face folder of ``plan``; returns what is told of it. Raises as ``convert`` does."""
    assert plan.emit
    place, dtype = plan.emit.folder, plan.emit.dtype
    before, plan = emit.settings(plan.sim_source), prepared(with_dataset(plan, progress), progress)
    size = emit.nbytes(plan.sim_source, dtype)
    with deferred_interrupts() as check, bundle.new_folder(place, replace=plan.overwrite) as folder:
        _refuse_full(place.absolute().parent, size)
        try:
            step = _progress_counter("emit", size, progress, check)
            error = emit.write(plan.sim_source, plan.merged_loras, before, folder, dtype, step)
            (folder / CARD).write_text(rotated_card(plan, error), encoding="utf-8")
        except OSError as failed:
            raise write_error(failed, Path(failed.filename or place)) from failed
    rounded = {} if dtype == "fp32" else {"rounding_error": error}
    lacking = {"missing": found} if (found := emit.missing_code(plan.sim_source, before)) else {}
    return {"dtype": dtype, "path": str(place), "bytes": bundle.size(place), **rounded, **lacking}


def with_dataset(plan: Plan, progress: Progress = no_progress) -> Plan:
    """``plan`` with its calibration data written by the model, where that is asked for and not done."""
    wanted = (plan.board.dataset if plan.board else None, plan.calibration)
    asked = next((each for each in wanted if isinstance(each, Generate)), None)
    if asked is None:
        return plan
    source = plan.sim_source
    with deferred_interrupts() as check, tempfile.TemporaryDirectory(prefix="rkconvert-generate-") as scratch:
        artifacts = plan_artifacts(source, [quant.scheme(REFERENCE)], for_sim=True, hybrid_rate=0.0)
        alone = Plan(
            source=source, name="model", out=Path(scratch), artifacts=artifacts, threads=plan.threads,
            loras=plan.merged_loras, lora_mode="merge",
        )  # fmt: skip
        (folder,) = convert(alone, progress)

        def step(done: int, total: int) -> None:
            check()
            progress(generating.LABEL, done, total)

        with SimModel(folder / bundle.SIM_MODEL) as model:
            samples = generating.write(model, source.vocabulary, asked, step)
    data = Dataset(asked.name, tuple(samples), asked.made)
    board = replace(plan.board, dataset=data) if plan.board else None
    return replace(plan, board=board, calibration=data if plan.calibration else None)


def _check_space(plan: Plan) -> None:
    _refuse_full(plan.out, disk_bytes(plan))


def _refuse_full(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise TargetError(
            f"no space left in {place}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; free some or "
            "choose another -o"
        )


def _checked(progress: Progress, check: Callable[[], None]) -> Progress:
    """``progress``, which raises when the user has asked to stop."""

    def update(what: str, done: int, total: int) -> None:
        check()
        progress(what, done, total)

    return update


def _progress_counter(what: str, total: int, progress: Progress, check: Callable[[], None]) -> Callable[[int], None]:
    """A function to be called with the size of each piece that is done, from any thread. It reports the progress, and
    raises when the user has asked to stop."""
    done, lock = 0, threading.Lock()

    def step(size: int) -> None:
        nonlocal done
        check()
        with lock:
            done += size
            progress(what, min(done, total), total)

    return step


def _write_artifacts(plan: Plan, folders: list[Path], progress: Progress, check: Callable[[], None]) -> dict[Path, str]:
    """Fill every ``model.sim.gguf``; returns the SHA-256 of each, and of the source's files."""
    source = plan.sim_source

    def step(done: int, total: int) -> None:
        check()
        progress("convert", done, total)

    with ExitStack() as stack:
        made, tokenizer = [], tokenizer_metadata(source.vocabulary)
        for artifact, folder in zip(plan.artifacts, folders, strict=True):
            header = make_header(plan.name, source.config, source.vocabulary, artifact, tokenizer, plan.hybrid_rate)
            made.append(ArtifactFile(folder / bundle.SIM_MODEL, artifact, header))
            stack.callback(made[-1].close)
            check()
        before = _sizes_and_times(source)
        digests = pipeline.run(source, made, plan.threads, step, plan.merged_loras)
        if _sizes_and_times(source) != before:
            raise CheckpointError(f"{source.path} changed while it was read: leave it alone and convert again")
        return digests | {file.path: file.finish() for file in made}


def _sizes_and_times(source: Source) -> list[tuple[int, int]]:
    """What is different when a file was written to: it is read twice, to be converted and to be hashed."""
    return [(stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in source.files)]


def _finish_bundles(
    plan: Plan, folders: list[Path], digests: dict[Path, str], progress: Progress, check: Callable[[], None]
) -> None:
    """Everything beside the artifacts, the manifest last.

    One thread a bundle, however few cores there are: hashing and syncing is most of it, and whole bundles in turn leave
    cores idle.
    """
    hashed = sum(file.stat().st_size for file in digests if file.parent in folders)
    total = sum(bundle.size(folder) for folder in folders) - hashed
    step = _progress_counter("hash", total, progress, check)
    texts = tokenizer_files(plan.source)
    with ThreadPoolExecutor(len(folders)) as pool:
        jobs = [
            pool.submit(_finish_bundle, plan, artifact, folder, texts, digests, step)
            for artifact, folder in zip(plan.artifacts, folders, strict=True)
        ]
        for job in jobs:
            job.result()


def _finish_bundle(
    plan: Plan,
    artifact: Artifact,
    folder: Path,
    texts: Mapping[str, str],
    digests: dict[Path, str],
    step: Callable[[int], None],
) -> None:
    source, vocabulary = plan.source, plan.source.vocabulary
    for file in (*source.copies, *source.license_files):
        files.copy(file, folder / file.name, files.TOKENIZER, file.parent, CheckpointError)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if vocabulary and vocabulary.chat_template:
        (folder / bundle.TEMPLATE).write_text(vocabulary.chat_template, encoding="utf-8")
    if vocabulary and plan.board:
        write_tokenizer(folder / bundle.VOCABULARY, plan.name, vocabulary)
    for adapter in plan.kept_loras if plan.for_sim else ():
        path = folder / in_bundle.bundle_file(adapter)
        path.parent.mkdir(exist_ok=True)
        in_bundle.write_gguf(adapter, plan.sim_source.config, path)
    manifest = make_manifest(plan, artifact, digests)
    sizes = {target: (folder / file).stat().st_size for target, file in manifest["artifacts"].items()}
    (folder / CARD).write_text(make_card(plan, artifact, manifest, sizes), encoding="utf-8")
    known = {file.name: sha256 for file, sha256 in digests.items() if file.parent == folder}
    bundle.write_manifest(folder, manifest, step, known)
