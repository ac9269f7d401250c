"""What both kinds of simulated boards begin with: a folder, and keys for SSH."""

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rk3588.boards import NAME
from rk3588.errors import BoardError, UsageError

from . import boards_folder, find, is_alive


def new_key(path: Path) -> str:
    """A new ed25519 key at ``path`` and its public half beside it; returns ``TYPE BASE64``."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.touch(mode=0o600)
    path.write_bytes(private)
    path.with_suffix(".pub").write_bytes(public + b"\n")
    return public.decode()


def prepare(name: str) -> Path:
    """The folder of a new board; UsageError if there is one of this name that is up."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r}: names have small letters, digits, dots and dashes only")
    there = find(name)
    if there and is_alive(there.pid):
        raise UsageError(f"{name} is up already: rk3588 board down {name}")
    folder = boards_folder() / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise BoardError(f"cannot make {folder}: {error.strerror}") from error
    return folder
