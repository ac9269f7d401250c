"""The front matter of a model card: plain YAML, which whoever wrote the card may have made to harm its reader."""

from __future__ import annotations

from typing import Any

import yaml

from rk3588.yamltable import fault

_MOST, _DEEPEST = 1 << 20, 40  # characters, and mappings or lists within each other


def split(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and the rest. What is not a mapping in YAML is left where it is."""
    try:
        return parsed(text)
    except ValueError:
        return {}, text


def parsed(text: str) -> tuple[dict[str, Any], str]:
    """ValueError for front matter that is no mapping in plain YAML."""
    if not text.startswith("---\n"):
        return {}, text
    head, mark, rest = f"{text[4:]}\n".partition("\n---\n")
    if not mark:
        return {}, text
    facts = _plain_yaml(f"\n{head}")  # lines are those of the card
    if facts is None:
        return {}, rest
    if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
        raise ValueError("it is no mapping of names")
    return facts, rest


def _plain_yaml(text: str) -> Any:
    """What ``text`` says; ValueError for aliases, which can say a thing a billion times, and for depths no card has."""
    if len(text) > _MOST:
        raise ValueError(f"it has {len(text)} characters")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has an alias ({event.anchor})")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ValueError("it is nested too deeply")
        return yaml.load(text, Loader=loader)  # a safe loader: it makes no objects
    except yaml.YAMLError as error:
        raise ValueError(fault(error, text)) from error
    except (RecursionError, OverflowError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error
