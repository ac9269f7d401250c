"""A plan's part for a board: what rkllm-toolkit is called with, and its exports put into the bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rk3588.errors import ToolkitError
from rk3588.rkllm_file import LORA_SUFFIX
from rkconvert.adapters import in_bundle, merge
from rkconvert.adapters.lora import Lora
from rkconvert.artifact.layout import Artifact
from rkconvert.calibration import Dataset
from rkconvert.plan import Plan
from rkconvert.rotation import emit

from . import driver, install, releases
from .job import ToolkitJob
from .options import PLATFORM

_SCRATCH = ".toolkit"  # inside the unfinished bundle: it goes when that goes


def write_model(
    plan: Plan,
    job: ToolkitJob,
    artifact: Artifact,
    folder: Path,
    progress: driver.Progress,
    check: Callable[[], None],
) -> None:
    """Write the ``.rkllm`` of ``artifact`` into ``folder``, and one for each adapter that is kept.

    The toolkit takes one adapter at a time, so each needs a build of its own. ToolkitError for whatever goes wrong.
    """
    assert isinstance(job.dataset, Dataset)  # the model has written it
    scratch = folder / _SCRATCH
    scratch.mkdir()
    try:
        dataset = scratch / "dataset.json"
        dataset.write_text(job.dataset.text(), encoding="utf-8")
        model = plan.source.path
        if plan.rotate or plan.smooth:
            model = _changed(plan, scratch / "changed", check)
        elif plan.merged_loras:
            model = merge.write_checkpoint(plan.sim_source, plan.merged_loras, scratch / "merged", check)
        exports, calls = {}, []
        for number, adapter in enumerate(plan.kept_loras or (None,)):
            export = scratch / f"{number}.rkllm"
            exports[export] = adapter
            calls += calls_for(plan, job, artifact, model, adapter, dataset, export)
        log = install.log_file(plan.variant(artifact))
        driver.run(job.toolkit.interpreter, calls, log, progress, check)
        _adopt(exports, folder / plan.npu_model(artifact), folder)
        if releases.is_residual(job.options.algorithm):
            first = next(iter(exports))
            _move(first.with_name(f"{first.stem}{LORA_SUFFIX}.rkllm"), folder / in_bundle.RESIDUAL_FILE)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _changed(plan: Plan, folder: Path, check: Callable[[], None]) -> Path:
    """The rotated or smoothed model as the toolkit can read it."""
    folder.mkdir()
    source = plan.sim_source
    emit.write(source, plan.merged_loras, emit.settings(source), folder, "fp32", lambda _: check())
    return folder


def calls_for(
    plan: Plan, job: ToolkitJob, artifact: Artifact, model: Path, adapter: Lora | None, dataset: Path, export: Path
) -> list[driver.Call]:
    """Every argument of rkllm-toolkit's three calls, none left to its defaults, but for ``max_context`` where none was
    asked for, and what of 1.3's export_rkllm is for callbacks that nobody here has."""
    options = job.options
    path = str(model.absolute())
    if plan.source.kind == "gguf":
        load: driver.Call = ("load_gguf", {"model": path})
    else:
        its = str(adapter.option.path.absolute()) if adapter else None
        load = ("load_huggingface", {"model": path, "model_lora": its, "device": options.device})
        if job.toolkit.release.takes_load_options:
            custom = str(options.custom_config.absolute()) if options.custom_config else None
            dtype = options.load_dtype or releases.LOAD_DTYPES[0]
            load[1].update({"dtype": dtype, "custom_config": custom, "load_weight": True})
    build: dict[str, Any] = {
        "do_quantization": True,
        "optimization_level": options.optimization_level,
        "quantized_dtype": artifact.scheme.name,
        "quantized_algorithm": options.algorithm,
        "target_platform": PLATFORM,
        "num_npu_core": options.npu_cores,
        "extra_qparams": str(options.extra_qparams.absolute()) if options.extra_qparams else None,
        "dataset": str(dataset.absolute()),
        "hybrid_rate": plan.hybrid_rate,
    }
    if options.max_context is not None:
        build["max_context"] = options.max_context
    return [load, ("build", build), ("export_rkllm", {"export_path": str(export.absolute())})]


def _adopt(exports: dict[Path, Lora | None], place: Path, folder: Path) -> None:
    """The first export is the model; the adapters' lie beside their own. A file that is not there is a failure."""
    for number, (export, adapter) in enumerate(exports.items()):
        if number == 0:
            _move(export, place)
        if adapter is not None:
            _move(export.with_name(f"{export.stem}{LORA_SUFFIX}.rkllm"), folder / in_bundle.npu_file(adapter))


def _move(export: Path, place: Path) -> None:
    if not export.is_file() or export.stat().st_size == 0:
        what = "the LoRA" if export.stem.endswith(LORA_SUFFIX) else "the model"
        raise ToolkitError(f"rkllm-toolkit said that it exported {what}, and wrote no {place.name}")
    place.parent.mkdir(exist_ok=True)
    export.replace(place)
