"""The plan as text, for ``--dry-run``."""

from __future__ import annotations

from rk3588.quant import mixed
from rkconvert.adapters.lora import Lora, bundle_file
from rkconvert.plan import Artifact, Board, Plan, describe_source, linear_kinds, model_facts, toolkit_obstacle
from rkconvert.sizes import bundle_bytes


def render(plan: Plan) -> str:
    """What the conversion would do, one bundle after another."""
    source = describe_source(plan)
    types = ", ".join(f"{n} x {kind}" for kind, n in source["types"].items())
    lines = [
        f"{plan.name}: {_model(plan)}",
        f"source: {source['path']} ({source['kind']}, {_mb(source['bytes'])}; tensors: {types})",
        _tokenizer(plan),
    ]
    lines += [_lora(lora, plan.lora_mode) for lora in plan.loras]
    if plan.board:
        lines.append(_toolkit(plan.board))
    for artifact in plan.artifacts:
        lines += ["", *_bundle(plan, artifact)]
    lines += ["", f"peak memory: about {_mb(plan.memory_bytes)} with {plan.threads} threads"]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _model(plan: Plan) -> str:
    model = model_facts(plan.source)
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


def _toolkit(board: Board) -> str:
    options, data = board.options, board.dataset
    known = "" if board.toolkit.known else ", from a wheel that is not known here"
    return (
        f"rkllm-toolkit {board.toolkit.version}{known}: optimization level {options.optimization_level}, "
        f"{options.npu_cores} cores, {options.algorithm}, on {options.device}, "
        f"calibrated with {len(data.samples)} samples ({data.name})"
    )


def _lora(lora: Lora, mode: str) -> str:
    fate = "merged into the weights" if mode == "merge" else f"kept as {bundle_file(lora)}"
    return (
        f"lora {lora.name}: rank {lora.rank}, alpha {lora.alpha:g}, scale {lora.option.scale:g}, "
        f"{len(lora.pairs)} layers ({', '.join(lora.targets)}), {fate}"
    )


def _bundle(plan: Plan, artifact: Artifact) -> list[str]:
    scheme = artifact.scheme
    sizes = [_mb(bundle_bytes(plan, artifact))] if artifact.tensors else []
    sizes += [f"and a .rkllm of about {_mb(plan.npu_bytes())}"] if plan.board else []
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
