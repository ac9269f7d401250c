"""The plan as text, for ``--dry-run``."""

from __future__ import annotations

from .lora import Lora, bundle_file
from .plan import Artifact, Plan, describe, linear_kinds, toolkit_obstacle


def render(plan: Plan) -> str:
    """What the conversion would do, one bundle after another."""
    facts = describe(plan)
    model, source = facts["model"], facts["source"]
    types = ", ".join(f"{n} x {kind}" for kind, n in source["types"].items())
    tokenizer = " / ".join(filter(None, (facts["tokenizer"]["model"], facts["tokenizer"]["pre"])))
    lines = [
        f"{plan.name}: llama, {model['parameters'] / 1e6:.1f} M parameters, {model['layers']} layers, "
        f"{model['heads']} heads on {model['kv_heads']} of {model['head_dim']}, "
        f"embedding {'tied' if model['tied'] else 'untied'}",
        f"source: {source['path']} ({source['kind']}, {_mb(source['bytes'])}; tensors: {types})",
        f"tokenizer: {tokenizer}, {model['vocab_size']} tokens",
    ]
    lines += [_lora(lora, plan.lora_mode) for lora in plan.loras]
    for artifact in plan.artifacts:
        lines += ["", *_bundle(plan, artifact)]
    lines += ["", f"peak memory: about {_mb(plan.memory_bytes)} with {plan.threads} threads"]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _lora(lora: Lora, mode: str) -> str:
    fate = "merged into the weights" if mode == "merge" else f"kept as {bundle_file(lora)}"
    return (
        f"lora {lora.name}: rank {lora.rank}, alpha {lora.alpha:g}, scale {lora.option.scale:g}, "
        f"{len(lora.pairs)} layers ({', '.join(lora.targets)}), {fate}"
    )


def _bundle(plan: Plan, artifact: Artifact) -> list[str]:
    scheme = artifact.scheme
    lines = [f"{scheme.name}: {plan.folder(artifact)}, {_mb(artifact.data_bytes)}"]
    for kind in linear_kinds(artifact):
        row = f"  {kind['count']:4} x {kind['layer']:<12} {kind['n']:>7} x {kind['k']:<6}"
        lines.append(f"{row} {_groups(kind['k'], kind['groups'], kind['short_group'], scheme.group_size)}".rstrip())
    obstacle = toolkit_obstacle(artifact)
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
