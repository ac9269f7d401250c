"""What deployments have left on a board: its releases, and what goes on there. Told by the agent, checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rk3588.errors import DeployError

_LATEST = 1e11  # seconds since 1970 that a date may be


@dataclass(frozen=True)
class BoardState:
    """What the agent found below the prefix; empty on a board that never saw a deployment."""

    exists: bool = False
    releases: Mapping[str, Any] = field(default_factory=dict)  # id → manifest, files (path → SHA-256), …
    incoming: Mapping[str, Any] = field(default_factory=dict)  # id → files (path → SHA-256), parts (path → size)
    current: str = ""
    unproven: Mapping[str, str] = field(default_factory=dict)
    activating: bool = False  # a release is being tried now
    units: bool = False  # as the current release has them
    rule: str = ""
    user: bool = False
    groups: tuple[str, ...] = ()
    keys: bool = False
    active: bool = False
    ready: bool = False

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> BoardState:
        """DeployError for what no agent of ours says."""
        known = {item.name: answer[item.name] for item in fields(cls) if item.name in answer}
        like = {**vars(cls()), "groups": []}
        sound = all(isinstance(value, type(like[name])) for name, value in known.items())
        sound = sound and all(map(_is_release, known.get("releases", {}).values()))
        if not sound or not all(map(_is_incoming, known.get("incoming", {}).values())):
            raise DeployError("the board describes its releases in a way that makes no sense: does python3 run there?")
        return cls(**{**known, "groups": tuple(known.get("groups", ()))})


def _is_release(row: Any) -> bool:
    shape: dict[str, type] = {"manifest": dict, "files": dict, "proven": int}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in shape.items()):
        return False
    deployed, listed = row.get("deployed"), row["manifest"].get("files", {})
    dated = isinstance(deployed, (int, float)) and 0 <= deployed < _LATEST
    patient = isinstance(row["manifest"].get("load_seconds", 0), int)
    hashed = _values_are(str, row["files"]) and _values_are(dict, listed) and all(map(_is_file_entry, listed.values()))
    return dated and patient and hashed


def _is_file_entry(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)


def _is_incoming(row: Any) -> bool:
    return isinstance(row, dict) and _values_are(str, row.get("files")) and _values_are(int, row.get("parts"))


def _values_are(kind: type, values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, kind) for value in values.values())


def latest_first(state: BoardState) -> list[str]:
    """Releases, the last to have proved itself first, those that never did at the end."""
    return sorted(state.releases, key=lambda name: (-state.releases[name]["proven"], -state.releases[name]["deployed"]))
