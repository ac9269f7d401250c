"""A plan told, for ``--dry-run``: as text, and as the plain data of ``--json``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rk3588.quant import mixed

from .adapters.in_bundle import bundle_file
from .adapters.in_bundle import facts as lora_facts
from .adapters.lora import Lora
from .artifact.layout import Artifact, linear_kinds, toolkit_obstacle
from .bundle_texts import model_facts
from .estimate import bundle_bytes, memory_bytes, npu_bytes
from .plan import Plan
from .rotation import emit
from .toolkit.job import ToolkitJob
from .toolkit.options import BoardOptions


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: what ``--dry-run --json`` prints."""
    vocabulary = plan.source.vocabulary
    loras = {"mode": plan.lora_mode, "adapters": [lora_facts(lora) for lora in plan.loras]}
    return {
        "name": plan.name,
        "source": describe_source(plan),
        "model": model_facts(plan.outlined.source),
        "tokenizer": {"model": vocabulary.model, "pre": vocabulary.pre} if vocabulary else None,
        "sampling": dict(plan.source.sampling),
        "bundles": [_describe_bundle(plan, artifact) for artifact in plan.artifacts],
        **({"rotation": _rotation(plan)} if plan.rotation else {}),
        **({"smoothing": plan.smoothing} if plan.smoothing else {}),
        **({"calibration": plan.calibration.facts()} if plan.calibration else {}),
        **({"checkpoint": _checkpoint(plan)} if plan.emit else {}),
        **({"board": plan.board.facts()} if plan.board else {}),
        "threads": plan.threads,
        "memory_bytes": memory_bytes(plan),
        **({"lora": loras} if plan.loras else {}),
        "notes": list(plan.notes),
    }


def _rotation(plan: Plan) -> dict[str, Any]:
    """Which basis it comes to is known when the matrices are made."""
    facts = plan.rotation
    return {key: value for key, value in facts.items() if key != "basis" or plan.source.rotation}


def _checkpoint(plan: Plan) -> dict[str, Any]:
    assert plan.emit
    size = emit.nbytes(plan.outlined.sim_source, plan.emit.dtype)
    return {"path": str(plan.emit.folder), "dtype": plan.emit.dtype, "bytes_about": size}


def describe_source(plan: Plan) -> dict[str, Any]:
    return {
        "path": str(plan.source.origin or plan.source.path),
        "kind": plan.source.kind,
        "types": dict(Counter(t.kind for t in plan.source.tensors.values())),
        "bytes": plan.source.nbytes,
    }


def _describe_bundle(plan: Plan, artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = {
        "dtype": artifact.scheme.name,
        "path": str(plan.folder(artifact)),
        "targets": plan.targets,
    }
    if plan.hybrid_rate:
        found["hybrid_rate"] = plan.hybrid_rate
    if artifact.tensors:
        # Of a hybrid, the layers are not chosen yet: these are the most it can take.
        found |= {
            "bytes": bundle_bytes(plan, artifact),
            "linear": linear_kinds(artifact),
            "toolkit_obstacle": toolkit_obstacle(artifact),
        }
    if plan.board:
        found["npu_bytes_about"] = npu_bytes(plan)
    return found


def render(plan: Plan) -> str:
    """What the conversion would do, one bundle after another."""
    source = describe_source(plan)
    types = ", ".join(f"{n} x {kind}" for kind, n in source["types"].items())
    lines = [
        f"{plan.name}: {_model(plan)}",
        f"source: {source['path']} ({source['kind']}, {_mb(source['bytes'])} of tensors: {types})",
        _tokenizer(plan),
    ]
    if plan.rotation:
        facts = plan.rotation
        lines.append(f"rotated: {facts['kind']}, {' and '.join(facts['matrices'])}, seed {facts['seed']}")
    if plan.smoothing:
        lines.append(f"smoothed: alpha {plan.smoothing['alpha']:g}")
    if plan.calibration:
        lines.append(f"calibrated with: {plan.calibration.name}, {plan.calibration.count} samples")
    if plan.emit:
        told = _checkpoint(plan)
        lines.append(f"checkpoint: {told['path']}, {told['dtype']}, about {_mb(told['bytes_about'])}")
    lines += [_lora(lora, plan.lora_mode) for lora in plan.loras]
    if plan.board:
        lines.append(_toolkit(plan.board))
    for artifact in plan.artifacts:
        lines += ["", *_bundle(plan, artifact)]
    lines += ["", f"peak memory: about {_mb(memory_bytes(plan))} with {plan.threads} threads"]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _model(plan: Plan) -> str:
    model = model_facts(plan.outlined.source)
    size = f"{model['architecture']}, {model['parameters'] / 1e6:.1f} M parameters"
    if plan.source.shape is None:
        return size
    return (
        f"{size}, {model['layers']} layers, {model['heads']} heads on {model['kv_heads']} of {model['head_dim']}, "
        f"embedding {'tied' if model['tied'] else 'untied'}"
    )


def _tokenizer(plan: Plan) -> str:
    vocabulary = plan.source.vocabulary
    if vocabulary is None:
        return "tokenizer: none that is known here"
    return f"tokenizer: {' / '.join(filter(None, (vocabulary.model, vocabulary.pre)))}, {len(vocabulary.tokens)} tokens"


def _toolkit(job: ToolkitJob) -> str:
    options, data = job.options, job.dataset
    known = "" if job.toolkit.known else ", from a wheel that is not known here"
    return (
        f"rkllm-toolkit {job.toolkit.version}{known}: optimization level {options.optimization_level}, "
        f"{options.npu_cores} cores, {options.algorithm}, on {options.device}, {_built_for(options)}"
        f"calibrated with {data.count} samples ({data.name})"
    )


def _built_for(options: BoardOptions) -> str:
    context = f"for {options.max_context} tokens, " if options.max_context else ""
    return context + (f"loaded as {options.load_dtype}, " if options.load_dtype else "")


def _lora(lora: Lora, mode: str) -> str:
    fate = "merged into the weights" if mode == "merge" else f"kept as {bundle_file(lora)}"
    return (
        f"lora {lora.name}: rank {lora.rank}, alpha {lora.alpha:g}, scale {lora.option.scale:g}, "
        f"{len(lora.pairs)} layers ({', '.join(lora.targets)}), {fate}"
    )


def _bundle(plan: Plan, artifact: Artifact) -> list[str]:
    scheme = artifact.scheme
    sizes = [_mb(bundle_bytes(plan, artifact))] if artifact.tensors else []
    sizes += [f"and a .rkllm of about {_mb(npu_bytes(plan))}"] if plan.board else []
    lines = [f"{scheme.name}: {plan.folder(artifact)}, {' '.join(sizes).removeprefix('and ')}"]
    if plan.hybrid_rate:
        groups = mixed(scheme)[1].group_size
        share = f"the share of {plan.hybrid_rate:g} that gains most"
        lines.append(f"  hybrid: {share} will have groups of {groups}; here all have")
    for kind in linear_kinds(artifact):
        size = mixed(scheme)[1].group_size if plan.hybrid_rate else scheme.group_size
        row = f"  {kind['count']:4} x {kind['layer']:<12} {kind['n']:>7} x {kind['k']:<6}"
        lines.append(f"{row} {_groups(kind['k'], kind['groups'], kind['short_group'], size)}".rstrip())
    obstacle = None if plan.board else toolkit_obstacle(artifact)
    if obstacle:
        lines.append(f"  a board could not take {scheme.name} of this model from rkllm-toolkit: {obstacle}")
    return lines


def _groups(k: int, groups: int, short: int, size: int) -> str:
    """How a row of K inputs is divided: ``576 = 4 x 128 + 64``."""
    if not size:
        return "one scale a row" if groups else "not quantised"
    if not short:
        return f"{k} = {groups} x {size}"
    return f"{k} = {groups - 1} x {size} + {short}" if groups > 1 else f"{k}, one short group"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
