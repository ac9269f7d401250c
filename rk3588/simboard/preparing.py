"""What both kinds of simulated boards begin with: a folder, and keys for SSH."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rk3588.boards import NAME
from rk3588.deploy import planning
from rk3588.deploy.layout import USER_PREFIX
from rk3588.errors import BoardError, UsageError

from . import boards_folder, find, is_alive, place_of

_ELSEWHERE = "rkboard-"


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
    discard(folder)
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise BoardError(f"cannot make {folder}: {error.strerror}") from error
    return folder


def discard(folder: Path) -> None:
    """Take away all of a board."""
    place = place_of(folder)
    if place.name.startswith(_ELSEWHERE):
        shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def make_place(folder: Path) -> Path:
    """Where a board without root gets its home, tree and keys: its folder, or a private one with links to it.

    A board's prefix is a plain path (see ``planning.check_prefix``); the folder of boards is whatever the user's is.
    /var/tmp comes first: models are large, and /tmp may be memory.
    """
    if planning.is_prefix(f"{folder}/home/{USER_PREFIX}"):
        return folder
    for parent in ("/var/tmp", "/tmp", tempfile.gettempdir()):
        if planning.is_prefix(f"{parent}/{_ELSEWHERE}/home/{USER_PREFIX}"):
            with contextlib.suppress(OSError):
                place = Path(tempfile.mkdtemp(prefix=_ELSEWHERE, dir=parent))
                for name in ("home", "tree"):
                    (folder / name).symlink_to(place / name)
                return place
    raise BoardError(
        f"a simulated board cannot lie in {folder}: a path of letters, digits, dots and dashes is needed; say one with "
        "XDG_STATE_HOME"
    )
