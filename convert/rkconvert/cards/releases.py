"""What a card says of RKLLM's releases, and of bundles whose ``.rkllm`` somebody else made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rk3588.compatibility import release_in
from rk3588.families import version

Manifest = Mapping[str, Any]
REMARK = " What stands here of how it was made is claimed by names, and nobody has checked it."
_CLAIMS = {
    "platform": "chip", "dtype": "dtype", "hybrid_rate": "hybrid rate", "optimization_level": "optimisation level",
    "toolkit": "rkllm-toolkit", "max_context": "context",
}  # fmt: skip


def runtime(manifests: Iterable[Manifest]) -> str:
    """Which runtime of Rockchip's runs models of these bundles."""
    found = {told.release.partition("+")[0] for told in map(release_in, manifests) if told}
    if not found:
        return "the RKLLM runtime of the toolkit that wrote it"
    newest = max(found, key=version)
    if version(newest)[:2] == (1, 1):
        return "RKLLM runtime 1.1.x"
    return f"RKLLM runtime {newest} or newer" if version(newest) >= (1, 1) else f"RKLLM runtime {newest}"


def templates(manifest: Manifest) -> str:
    """What that runtime does with a prompt."""
    told = release_in(manifest)
    if told and version(told.release)[:2] <= (1, 1):
        return "Runtime 1.1.x applies no chat template and keeps no history"
    return "What the runtime does with a prompt differs by its release: 1.1.x applies no chat template"


def adopted_rows(manifests: Iterable[Manifest]) -> list[tuple[str, str]]:
    """Rows for the card's table; none where all of it was made here."""
    found = [(m["adopted"], m["converter"]["rkconvert"]) for m in manifests if "adopted" in m]
    rows = []
    for adopted, ours in found:
        hub = f" of {adopted['hub']['repository']} at {adopted['hub']['commit'][:12]}" if "hub" in adopted else ""
        rows.append(("Made by", f"whoever made `{adopted['file']}`{hub}; adopted with rkconvert {ours}"))
        told = [f"{_CLAIMS.get(k, k)} {c['value']} (by {c['by']})" for k, c in adopted["claims"].items()]
        rows.append(("Claimed", "; ".join(told) or "nothing"))
    return rows
