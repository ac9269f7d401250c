"""API keys: a file with a `NAME:KEY` or a `KEY` on each line. They are compared in constant time and never logged."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from rk3588.errors import RequestRefused, UsageError

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def shown_in(headers: Mapping[str, str]) -> Optional[str]:
    """What stands in the Authorization header, or would: clients of Anthropic's send a key in `x-api-key`."""
    key = headers.get("x-api-key")
    return headers.get("authorization") or (f"Bearer {key}" if key else None)


class Keys:
    """Who may ask. Without a file everybody may, with any key or none."""

    def __init__(self, file: Optional[Path]) -> None:
        self._by_digest = None if file is None else _read(file)

    def known(self, authorization: Optional[str]) -> bool:
        """Whether somebody has shown a key; False where none are asked for."""
        try:
            return bool(self.owner(authorization))
        except RequestRefused:
            return False

    def owner(self, authorization: Optional[str]) -> str:
        """Name of the key in an Authorization header; "" where no keys are asked for."""
        if self._by_digest is None:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        digest = _digest(token.strip()) if scheme.lower() == "bearer" else b""
        owner = None
        for known, name in self._by_digest.items():  # to the end, so that time says nothing
            if hmac.compare_digest(known, digest):
                owner = name
        if owner is None:
            what = "this API key is not known here" if digest else "an API key is needed"
            raise RequestRefused(f"{what}: send `Authorization: Bearer KEY`", status=401, code="invalid_api_key")
        return owner


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(file: Path) -> dict[bytes, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"cannot read the keys in {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: one `NAME:KEY` or `KEY` on each line") from error
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, key = line.strip().partition(":")
        if not colon:
            name, key = f"line-{number}", name
        # Messages name the line only: a key must not end up in a log.
        if not _NAME.fullmatch(name):
            raise UsageError(f"{file}, line {number}: the name before `:` has letters, digits and . _ @ - only")
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"{file}, line {number}: a key has printable ASCII characters and no spaces")
        if _digest(key) in found:
            raise UsageError(f"{file}, line {number}: this key stands there twice")
        found[_digest(key)] = name
    if not found:
        raise UsageError(f"{file} has no key in it: put one `NAME:KEY` on each line")
    return found
