"""Where a thing stands in the body that was sent, for languages whose bodies become that of /v1/chat/completions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rk3588.errors import RequestRefused

# At the beginning only, where an error names its field: further on it may quote what somebody wrote.
_MESSAGE = re.compile(r"(['\"]?)messages\[([0-9]{1,6})\]")


def at_its_place(
    error: RequestRefused, places: Sequence[str], names: Mapping[str, str] = MappingProxyType({})
) -> RequestRefused:
    """The error with the names that things have where they were sent: ``places`` of messages, by their numbers, and
    ``names`` of fields."""

    def named(text: str) -> str:
        if error.param and error.param in names and text.lstrip("'").startswith(error.param):
            return text.replace(error.param, names[error.param], 1)
        match = _MESSAGE.match(text)
        if match is None or int(match[2]) >= len(places):
            return text
        return match[1] + places[int(match[2])] + text[match.end() :]

    return RequestRefused(named(str(error)), error.param and named(error.param), error.status, error.code)
