"""``convert(plan)``: the one function behind the command line. Bundles appear whole or not at all."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rk3588
from rk3588 import bundle, files, quant, sim
from rk3588.errors import CheckpointError, TargetError

from .adapters import lora
from .artifact import hybrid, pipeline
from .artifact.header import make_header, tokenizer_metadata, write_tokenizer
from .artifact.writer import ArtifactWriter, write_error
from .cards.card import Variant, base_of, model_card
from .plan import Artifact, Plan, model_facts
from .signals import deferred_interrupts
from .sources.base import CARD, Checkpoint, Source
from .tokenizers import tokenizer_json
from .toolkit import build as npu
from .toolkit.options import PLATFORM

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


def no_progress(_what: str, _done: int, _total: int) -> None:
    pass


def convert(plan: Plan, progress: Progress = no_progress) -> list[Path]:
    """Write the bundles of ``plan`` and return their folders, in the plan's order.

    Raises CheckpointError for a source that is not what it should be, TargetError for a place that cannot be
    written to. Ctrl-C is KeyboardInterrupt. In all cases nothing half-written stays behind.
    """
    if plan.for_sim:
        sim.library()  # a missing quantiser should not show after minutes of reading
    finals = [plan.folder(artifact) for artifact in plan.artifacts]
    with deferred_interrupts() as check, ExitStack() as stack:
        folders = [stack.enter_context(bundle.new_folder(final, replace=plan.overwrite)) for final in finals]
        _check_space(plan)
        try:
            digests: dict[Path, str] = {}  # SHA-256 of what was hashed on the way
            if plan.for_sim:
                plan = hybrid.settled(plan, _counted("measure", plan.source.nbytes, progress, check))
                digests = _write_artifacts(plan, folders, progress, check)
            if plan.board:
                for artifact, folder in zip(plan.artifacts, folders, strict=True):
                    npu.write_model(plan, plan.board, artifact, folder, progress, check)
            _finish_bundles(plan, folders, digests, progress, check)
        except OSError as error:
            raise write_error(error, Path(error.filename or folders[0] / bundle.SIM_MODEL)) from error
        check()
    return finals


def _check_space(plan: Plan) -> None:
    needed, free = plan.needed_bytes, shutil.disk_usage(plan.out).free
    if needed > free:
        raise TargetError(
            f"no space left in {plan.out}: {needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB free; free some or "
            "choose another -o"
        )


def _counted(what: str, total: int, progress: Progress, check: Callable[[], None]) -> Callable[[int], None]:
    """Told the sizes of pieces, from any thread, it reports how much is done, and raises when asked to stop."""
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
    source = plan.llama

    def step(done: int, total: int) -> None:
        check()
        progress("convert", done, total)

    with ExitStack() as stack:
        writers, tokenizer = [], tokenizer_metadata(source.vocabulary)
        for artifact, folder in zip(plan.artifacts, folders, strict=True):
            header = make_header(plan.name, source.config, source.vocabulary, artifact, tokenizer, plan.hybrid_rate)
            writers.append(ArtifactWriter(folder / bundle.SIM_MODEL, artifact, header))
            stack.callback(writers[-1].close)
            check()
        before = _stamps(source)
        digests = pipeline.run(source, writers, plan.threads, step, plan.merged)
        if _stamps(source) != before:
            raise CheckpointError(f"{source.path} changed while it was read: leave it alone and convert again")
        return digests | {writer.path: writer.finish() for writer in writers}


def _stamps(source: Source) -> list[tuple[int, int]]:
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
    step = _counted("hash", total, progress, check)
    made = tokenizer_files(plan)
    with ThreadPoolExecutor(len(folders)) as pool:
        jobs = [
            pool.submit(_finish_bundle, plan, artifact, folder, made, digests, step)
            for artifact, folder in zip(plan.artifacts, folders, strict=True)
        ]
        for job in jobs:
            job.result()


def _finish_bundle(
    plan: Plan,
    artifact: Artifact,
    folder: Path,
    made: Mapping[str, str],
    digests: dict[Path, str],
    step: Callable[[int], None],
) -> None:
    source, vocabulary = plan.source, plan.source.vocabulary
    for file in (*source.copies, *source.license_files):
        files.copy(file, folder / file.name, files.TOKENIZER, file.parent, CheckpointError)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    if vocabulary and vocabulary.chat_template:
        (folder / bundle.TEMPLATE).write_text(vocabulary.chat_template, encoding="utf-8")
    if vocabulary and plan.board:
        write_tokenizer(folder / bundle.VOCABULARY, plan.name, vocabulary)
    for adapter in plan.kept if plan.for_sim else ():
        path = folder / lora.bundle_file(adapter)
        path.parent.mkdir(exist_ok=True)
        lora.write_gguf(adapter, plan.llama.config, path)
    manifest = make_manifest(plan, artifact, digests)
    sizes = {target: (folder / file).stat().st_size for target, file in manifest["artifacts"].items()}
    named = {**manifest, "files": [{"path": file.name} for file in source.license_files]}
    variant = Variant(
        plan.variant(artifact), named, sizes, source.shape, bool(vocabulary and vocabulary.chat_template)
    )
    card = model_card([variant], base_of(source))
    (folder / CARD).write_text(card, encoding="utf-8")
    known = {file.name: sha256 for file, sha256 in digests.items() if file.parent == folder}
    bundle.write_manifest(folder, manifest, step, known)


def tokenizer_files(plan: Plan) -> dict[str, str]:
    """What a Hugging Face folder has and a GGUF file has not, made from its vocabulary."""
    source = plan.source
    if source.kind != "gguf" or source.vocabulary is None:
        return {}
    return tokenizer_json.files(source.vocabulary, source.shape.context if source.shape else 0)


def make_manifest(plan: Plan, artifact: Artifact, digests: dict[Path, str]) -> dict[str, Any]:
    """``rkbundle.json`` without its list of files. Names only: where the source lay is nobody's business."""
    source = plan.source
    hashed = [
        {"path": file.name, "size": file.stat().st_size, "sha256": digests.get(file) or bundle.sha256(file)}
        for file in (*source.files, *source.extras)
    ]
    made = {"sim": bundle.SIM_MODEL, PLATFORM: plan.npu_model(artifact)}
    return {
        "name": plan.name,
        "dtype": artifact.scheme.name,
        "target_platform": PLATFORM,
        "model": model_facts(source),
        "source": {
            "name": source.name,
            "kind": source.kind,
            **({"hub": asdict(source.origin)} if source.origin else {}),
            "types": sorted(Counter(t.kind for t in source.tensors.values())),
            "files": hashed,
        },
        "tokenizer": _tokenizer_facts(source),
        **({"sampling": dict(source.sampling)} if source.sampling else {}),
        "artifacts": {target: made[target] for target in plan.targets},
        **({"hybrid": _hybrid_facts(plan, artifact)} if plan.hybrid_rate else {}),
        **({"lora": lora.manifest_entry(plan.loras, plan.lora_mode, plan.targets)} if plan.loras else {}),
        **({"toolkit": plan.board.facts()} if plan.board else {}),
        "converter": {"rkconvert": rk3588.__version__},
    }


def _tokenizer_facts(source: Checkpoint) -> dict[str, Any]:
    """Nothing of a tokenizer that is not known here."""
    vocabulary = source.vocabulary
    if vocabulary is None:
        return {}
    reason = tokenizer_json.obstacle(vocabulary) if source.kind == "gguf" else None
    return {
        **({"no_tokenizer_json": reason} if reason else {}),
        "bos_token": vocabulary.text(vocabulary.bos),
        "eos_token": vocabulary.text(vocabulary.eos),
        "add_bos": vocabulary.add_bos,
        "eos_token_ids": list(vocabulary.eos_ids),
    }


def _hybrid_facts(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    """The rate, and what it came to where that is known: which layers rkllm-toolkit chose, it does not say."""
    if not artifact.tensors:
        return {"rate": plan.hybrid_rate}
    groups = quant.mixed(artifact.scheme)[1].group_size
    return {
        "rate": plan.hybrid_rate,
        "sim": {"group_size": groups, "grouped": hybrid.grouped_layers(artifact)},
    }
