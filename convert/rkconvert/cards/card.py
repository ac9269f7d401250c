"""The model card of a bundle: what it is, what was done, what is known of it on a board; then the original card.

It says only what is true: a LoRA only where one was applied, accuracy only where it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rk3588 import boards, files, predict, quant, shape
from rk3588.bundle import NPU_MODEL, SIM_MODEL, Bundle
from rk3588.errors import BundleError, CheckpointError
from rk3588.predict import Estimate, Prediction, Workload
from rk3588.rkllm import CONTEXT_RESERVE, MAX_CONTEXT
from rk3588.shape import Shape
from rkconvert.sources.base import CARD, LICENCE, Checkpoint

from . import front_matter, licences, releases

_SOC = "RK3588"
_GB = 1e9
_ORIGINAL = "## The original model card"
# Of the original only: figures measured on it, and how its own files are loaded.
_DROPPED = ("model-index", "library_name", "widget", "inference", "quantized_by", "datasets")


@dataclass(frozen=True)
class Base:
    """The original's card: its front matter, and its text."""

    facts: dict[str, Any]
    text: str
    notes: tuple[str, ...] = ()  # what of it could not be used

    @property
    def licence(self) -> licences.Licence | None:
        return licences.find(_as_text(self.facts.get("license")), _as_text(self.facts.get("license_name")))


@dataclass(frozen=True)
class Variant:
    """One bundle: its manifest, its folder's name, the bytes of its artifacts by target, and its model's shape."""

    folder: str
    manifest: dict[str, Any]
    sizes: dict[str, int]
    shape: Shape | None
    can_chat: bool  # has a chat template

    @classmethod
    def of(cls, found: Bundle) -> Variant:
        """A bundle on disk."""
        if found.dtype not in quant.SCHEMES:
            raise BundleError(f"{found.path}: this version knows no dtype {found.dtype!r}: update it, or convert again")
        sizes = {t: (found.path / file).stat().st_size for t, file in found.manifest["artifacts"].items()}
        try:
            known: Shape | None = shape.load(found.path)
        except CheckpointError:  # a family that is not known here
            known = None
        return cls(found.path.absolute().name, found.manifest, sizes, known, found.chat_template is not None)

    @property
    def dtype(self) -> str:
        return str(self.manifest["dtype"])

    @property
    def context(self) -> int:
        """Tokens; on a board, those that its runtime can use."""
        own = int(self.manifest["model"].get("context_length") or MAX_CONTEXT)
        built_for = self.manifest.get("toolkit", {}).get("max_context") or MAX_CONTEXT
        return min(own, built_for) if "rk3588" in self.sizes else own

    def predictions(self) -> list[Prediction]:
        """On a board at its highest clocks: none where nothing is known, two that bound a hybrid."""
        scheme = quant.SCHEMES[self.dtype]
        if self.shape is None or not scheme.quantised:
            return []
        context = min(self.shape.context or MAX_CONTEXT, MAX_CONTEXT)
        if context - CONTEXT_RESERVE < 1:
            return []
        prompt = min(128, context - CONTEXT_RESERVE)
        cores = self.manifest.get("toolkit", {}).get("npu_cores", 3)
        schemes = quant.mixed(scheme) if "hybrid" in self.manifest else (scheme,)
        work = Workload(prompt=prompt, context=context, cores=cores)
        return [predict.predict(self.shape, s.name, work, boards.catalogue().socs[_SOC]) for s in schemes]


def read_base(folder: Path | None) -> Base:
    """The card in a model's folder, an empty one where there is none; CheckpointError for what is no card."""
    if folder is None or not files.exists(folder / CARD):
        return Base({}, "")
    try:
        text = files.read_text(folder / CARD, files.TEXT, folder, CheckpointError)
    except FileNotFoundError:
        return Base({}, "", (f"{folder / CARD} is a link that leads nowhere: the model card has nothing of it",))
    try:
        facts, body = front_matter.parsed(text)
    except ValueError as error:
        why = " ".join(str(error).split())[:200]
        return Base({}, text, (f"{folder / CARD}: its front matter cannot be used ({why}), nor the licence it states",))
    return Base(facts, body)


def base_of(source: Checkpoint) -> Base:
    """The card of a model, with what its file says itself where no card does."""
    base = read_base(source.folder)
    if "license" in base.facts:
        return base
    texts = (files.read_text(file, files.TEXT, file.parent, CheckpointError) for file in source.license_files)
    found = source.licence or next(filter(None, map(licences.of_text, texts)), None)
    return replace(base, facts={**base.facts, "license": found}) if found else base


def original_card(own: Base) -> Base:
    """The original's card out of a bundle's own."""
    _, mark, text = own.text.partition(f"\n{_ORIGINAL}\n")
    text = text.split("\n\n", 1)[1] if mark else ""  # past the line that says whose it is
    return Base(own.facts, text)


def _as_text(value: Any) -> str:
    """A text, or several; of anything else, nothing."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else ""


def model_card(variants: list[Variant], base: Base) -> str:
    """``README.md`` for one bundle, or for several of one model."""
    parts = [_title(variants), _description(variants), _table(variants), *_loras(variants), _usage(variants)]
    files = sorted({e["path"] for v in variants for e in v.manifest.get("files", ()) if LICENCE.match(e["path"])})
    parts.append(licence_section(base, files))
    if base.text.strip():
        parts.append(f"{_ORIGINAL}\n\nWritten for {_source(variants)}, not for this conversion.\n\n{base.text.strip()}")
    card = f"---\n{_front_matter(variants, base)}---\n\n" + "\n\n".join(part.strip() for part in parts) + "\n"
    return card.encode("utf-8", "replace").decode("utf-8")  # files' names may be of other bytes


def _source(variants: list[Variant]) -> str:
    return str(variants[0].manifest["source"]["name"])


def _front_matter(variants: list[Variant], base: Base) -> str:
    """The original's, and ours behind it; what is ours is put in anew, so that a card may be made of a card."""
    source, dtypes = variants[0].manifest["source"], list(dict.fromkeys(v.dtype for v in variants))
    stated = base.facts.get("tags")
    tags = [tag for tag in stated if isinstance(tag, str)] if isinstance(stated, list) else []
    named = source["hub"]["repository"] if "hub" in source else base.facts.get("base_model", source["name"])
    ours = {
        "base_model": named,
        "base_model_relation": "quantized",
        "quantization": dtypes[0] if len(dtypes) == 1 else dtypes,
        "tags": [*tags, "rk3588"],
    }
    if any("rk3588" in v.sizes for v in variants):
        ours["tags"].append("rkllm")
    ours["tags"] = list(dict.fromkeys(ours["tags"]))
    facts = {key: value for key, value in base.facts.items() if key not in (*_DROPPED, *ours)}
    return yaml.safe_dump({**facts, **ours}, allow_unicode=True, sort_keys=False)


def _title(variants: list[Variant]) -> str:
    title = variants[0].folder if len(variants) == 1 else f"{variants[0].manifest['name']} for the RK3588"
    return f"# {title}"


def _description(variants: list[Variant]) -> str:
    first = variants[0].manifest
    model, source = first["model"], first["source"]
    targets = {target for v in variants for target in v.sizes}
    runtime = releases.runtime(v.manifest for v in variants)
    runs = {
        frozenset({"sim"}): "the simulated runtime of the toolkit rk3588, on any x86-64 or aarch64 Linux. It is not a "
        "`.rkllm`, and no NPU can run it",
        frozenset({"rk3588"}): f"the NPU of an RK3588, under {runtime}",
    }.get(frozenset(targets), f"the NPU of an RK3588 under {runtime}, and beside it for the simulated runtime")
    size = f", {model['parameters'] / 1e6:,.1f} million parameters" if "parameters" in model else ""
    layers = f", {model['layers']} layers" if "layers" in model else ""
    made = [f"rkconvert {first['converter']['rkconvert']}", *_toolkits(variants)]
    kind = "; ".join(filter(None, (source["kind"], ", ".join(source["types"]))))
    rows = [
        ("Architecture", f"{model['architecture']}{layers}{size}"),
        ("Made from", f"{_source(variants)}{_commit(source)} ({kind})"),
        ("Made by", ", ".join(made)),
    ]
    adopted = releases.adopted_rows(v.manifest for v in variants)
    rows = [*rows[:2], *adopted] if adopted else rows
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    how = "; ".join(dict.fromkeys(_scheme(v) for v in variants))
    whose = "Somebody else's conversion" if adopted else "A conversion"
    told = releases.REMARK if adopted else ""
    return f"{whose} of {_source(variants)} for {runs}. Its weights are {how}.{told}\n\n| | |\n|---|---|\n{table}"


def _commit(source: dict[str, Any]) -> str:
    return f" at {source['hub']['commit'][:12]}" if "hub" in source else ""


def _toolkits(variants: list[Variant]) -> list[str]:
    found = []
    for toolkit in (v.manifest["toolkit"] for v in variants if "toolkit" in v.manifest):
        known = "" if toolkit["known"] else f" (`{toolkit['package']}`, which is none of Rockchip's known wheels)"
        found.append(f"rkllm-toolkit {toolkit['version']}{known}")
    return list(dict.fromkeys(found))


def _scheme(variant: Variant) -> str:
    scheme = quant.SCHEMES[variant.dtype]
    if not scheme.quantised:
        bits = 16 if scheme.name == "fp16" else 32
        return f"{bits}-bit floating point, not quantised ({scheme.name})"
    groups = f"one for every {scheme.group_size} inputs of an output" if scheme.group_size else "one for each output"
    mixed = ""
    if "hybrid" in variant.manifest:
        rate, grouped = variant.manifest["hybrid"]["rate"], quant.mixed(scheme)[1].group_size
        groups = f"one for each output or for every {grouped} inputs of it"
        mixed = f", hybrid rate {rate:g}"
    return f"8-bit integers with scales, {groups} ({scheme.name}{mixed}), and so are the activations, at run time"


def _table(variants: list[Variant]) -> str:
    head = ["Variant", "File", "Size", "Context", "Memory on a board", "Predicted decode", "Predicted prefill"]
    measured = [v.manifest.get("accuracy") for v in variants]
    if any(measured):
        head.append("Accuracy against " + "/".join(dict.fromkeys(m.get("reference", "fp32") for m in measured if m)))
    rows = [row for v, accuracy in zip(variants, measured) for row in _rows(v, accuracy, bool(any(measured)))]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## Variants\n\n{table}\n\n{_notes(variants)}"


def _rows(variant: Variant, accuracy: dict[str, Any] | None, column: bool) -> list[list[str]]:
    found = variant.predictions()
    memory = max((p.memory.total for p in found), default=0)
    on_board = [
        f"about {_significant(memory / _GB)} GB" if found else "not known",
        _speed([p.decode_tok_s for p in found]),
        _speed([p.prefill_tok_s for p in found]),
    ]
    name = f"{variant.dtype}{_unusual_options(variant)}"
    rows = []
    for target, size in variant.sizes.items():
        file = variant.manifest["artifacts"][target]
        row = [name, f"`{file}`", f"{size / 1e6:,.1f} MB", f"{variant.context} tokens", *on_board]
        # It was measured on the simulated runtime; what a board's kernels make of it is not known.
        shown = _accuracy(accuracy) if accuracy and target == "sim" else "not measured"
        rows.append([*row, *([shown] if column else [])])
    return rows


def _unusual_options(variant: Variant) -> str:
    level = variant.manifest.get("toolkit", {}).get("optimization_level", 1)
    rate = variant.manifest.get("hybrid", {}).get("rate")
    unusual = (f", optimization level {level}" if level != 1 else "") + (f", hybrid rate {rate:g}" if rate else "")
    rotation = variant.manifest.get("rotation")
    smoothing = variant.manifest.get("smoothing")
    unusual += f", rotated ({rotation['kind']})" if rotation else ""
    return unusual + (f", smoothed (alpha {smoothing['alpha']:g})" if smoothing else "")


def _speed(found: list[Estimate]) -> str:
    if not found:
        return "not known"
    low, high = min(e.low for e in found), max(e.high for e in found)
    likely = f"{_significant(found[0].value)}, " if len(found) == 1 else ""
    return f"{likely}{_significant(low)} to {_significant(high)} tok/s"


def _significant(value: float, digits: int = 2) -> str:
    """Two digits that count: predictions are off by tenths, and more digits would say otherwise."""
    if not value:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def _accuracy(found: dict[str, Any]) -> str:
    return (
        f"perplexity {_significant(found['perplexity'], 4)} ({found.get('reference', 'fp32')}: "
        f"{_significant(found['reference_perplexity'], 4)}), "
        f"KL {_significant(found['divergence'])}, same best token {found['agreement']:.0%}, "
        f"over {found['tokens']} tokens of {found['text']}"
    )


def _notes(variants: list[Variant]) -> str:
    lines = [
        "Speed and memory on a board are predicted from the model's shape by a fit to Rockchip's published figures, at "
        "full clocks, with intervals of 90 %. Nothing of this was measured on a board."
    ]
    if any(v.predictions() for v in variants):
        notes = dict.fromkeys(note for v in variants for p in v.predictions() for note in p.notes)
        lines += [f"- {note}" for note in notes]
    if any(v.manifest.get("rotation") for v in variants):
        lines.append(
            "Rotated: the weights were turned so that they lose less when they are quantised (QuaRot, SpinQuant). The "
            "answers are the model's own; its hidden states and input embeddings are in another basis, and cannot be "
            "compared or mixed with the original's."
        )
    if not any(v.manifest.get("accuracy") for v in variants):
        lines.append("Its accuracy has not been measured.")
    return "\n".join(lines)


def _loras(variants: list[Variant]) -> list[str]:
    """A section where an adapter was merged or kept, and nothing else."""
    lines = []
    for variant in variants:
        lora = variant.manifest.get("lora")
        for adapter in lora["adapters"] if lora else ():
            of = f", trained on {adapter['base_model']}" if "base_model" in adapter else ""
            merged = lora is not None and lora["mode"] == "merge"
            where = "merged into the weights" if merged else f"`--lora {adapter['name']}` selects it"
            about = f"rank {adapter['rank']}, scale {adapter['scale']:g}{of}"
            lines.append(f"- {variant.dtype}: LoRA {adapter['name']} ({about}), {where}")
    return ["## LoRA\n\n" + "\n".join(dict.fromkeys(lines))] if lines else []


def _usage(variants: list[Variant]) -> str:
    folder = variants[0].folder
    sim = f"`{SIM_MODEL}` also runs in any program that speaks RKLLM 1.1 to 1.3, over this toolkit's `librkllmrt.so`."
    ask = f'    rk3588 run {folder} "What is the capital of France?"\n    rk3588 chat {folder}'
    if not variants[0].can_chat:
        ask = f'    rk3588 run {folder} --raw "The capital of France is"'
    text = f"""## Use

With the toolkit rk3588:

{ask}
    rk3588 bundle verify {folder}
"""
    board = next((v for v in variants if "rk3588" in v.sizes), None)
    if board:
        render = ": render each prompt with the conversation so far, as\n`chat_template.jinja` does"
        render = render if board.can_chat else ""
        file = board.manifest["artifacts"].get("rk3588", NPU_MODEL)
        text += f"""
With Rockchip's own runtime ({releases.runtime([board.manifest])}) and its demo, on the board:

    ulimit -n 102400
    ./llm_demo {board.folder}/{file} 512 {board.context}

{releases.templates(board.manifest)}{render}."""
    else:
        text += f"\n{sim}"
    return text


def licence_section(base: Base, files: Sequence[str]) -> str:
    """What is known of the original's licence; ``files`` have its text."""
    lines = ["## Licence\n"]
    known, stated = base.licence, _as_text(base.facts.get("license_name")) or _as_text(base.facts.get("license"))
    if known is None:
        what = f"is stated as `{stated}`" if stated else "is not stated in what this was made from"
        lines.append(f"The licence is the original model's. It {what}: look it up before you pass this on.")
    else:
        lines.append(f"The licence is the original model's: {known.title}.")
    if known and known.display:
        lines.append(f"\n**{known.display}**")
    if known and known.notice:
        lines.append(f"\n{known.notice}")
    if files:
        lines.append(f"\nIts text came with the model: {', '.join(f'`{file}`' for file in files)}.")
    return "\n".join(lines)


def naming_note(name: str, base: Base) -> str | None:
    """Where the licence asks for a name that this one is not."""
    known = base.licence
    if known is None or not known.prefix or name.startswith(known.prefix):
        return None
    return (
        f"the {known.title} asks that a model derived from it, when it is passed on, has a name that begins with "
        f"'{known.prefix}': choose one with --name"
    )
