"""The table of docs/architectures.md, from the table of families. Run as a module it writes the file's part anew."""

from __future__ import annotations

from pathlib import Path

from rk3588.families import BY_KV_HEAD, FAMILIES, Family

DOCS = Path(__file__).resolve().parent.parent / "docs" / "architectures.md"
BEGIN, END = "<!-- from rk3588/families.py: python -m tests.architectures_table -->\n", "<!-- end -->\n"
_LAYER_KINDS = {
    "sliding": "a window in every layer",
    "every 2": "a window in every other layer",
    "every 6": "a window in five layers of six",
    "from max_window_layers": "a window from a layer on, where it is switched on",
    "where no RoPE is": "no RoPE in every fourth layer",
}


def features(family: Family) -> list[str]:
    """What a family does otherwise than a Llama without biases."""
    found = []
    if family.biases:
        found.append(f"bias on {_layers(family.biases)}")
    found += [f"bias on {_layers(kinds)} with `{key}`" for key, kinds in family.bias_keys.items()]
    found += [f"`{name}` fused{_order(fused.order)}" for name, fused in family.fused.items()]
    found += ["LayerNorm"] if family.layer_norm else []
    found += ["RMSNorm by 1 + w"] if family.gain_plus_one else []
    found += ["norms of Q's and K's heads"] if family.head_norms else []
    found += ["norms after attention and MLP, too"] if family.post_norms else []
    found += ["attention and MLP side by side"] if family.parallel else []
    found += [] if family.gated else ["MLP without gate"]
    found += ["GELU (tanh)"] if family.activation == "gelu_tanh" else []
    found += ["part of a head turns"] if "partial_rotary_factor" in family.defaults else []
    found += ["another RoPE base in layers with a window"] if "rope_local_base_freq" in family.defaults else []
    found += [_LAYER_KINDS[family.layer_kinds]] if family.layer_kinds in _LAYER_KINDS else []
    found += ["soft caps"] if "attn_logit_softcapping" in family.defaults else []
    found += ["its own scale of queries"] if "query_pre_attn_scalar" in family.defaults else []
    scales = (family.embedding_scale, family.residual_scale, family.logit_scale)
    names = ("embedding", "residuals", "logits")
    scaled = [f"{name} by `{key}`" for name, key in zip(names, scales, strict=True) if key]
    found += [f"scaled: {', '.join(scaled)}"] if scaled else []
    return found


def _order(order: str) -> str:
    return " by KV head" if order == BY_KV_HEAD else ""


def _layers(kinds: tuple[str, ...]) -> str:
    words = {"attn_q": "Q", "attn_k": "K", "attn_v": "V", "attn_output": "attention's output", "output": "lm_head"}
    return ", ".join(words.get(kind, kind.removeprefix("ffn_")) for kind in kinds)


def table() -> str:
    lines = ["| family | `architectures` | GGUF | differs from Llama by | rkllm-toolkit |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        classes = ", ".join(f"`{name}`" for name in (*family.classes, *family.text_of))
        does = f"not converted: {family.refused}" if family.refused else "; ".join(features(family)) or "nothing"
        gguf = f"`{family.name}`" if family.in_gguf else ""
        toolkit = f"from {family.toolkit}" if family.toolkit else "not known to"
        lines.append(f"| {family.title} | {classes} | {gguf} | {does} | {toolkit} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    DOCS.write_text(with_table(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
