"""The board's half of a deployment: what is there, taking a file, completing a release, making it the current one.

Standard library only, Python 3.9; sent as one zip, which also lies in every release. Answers are JSON lines; the last
has ``ok``. Layout below the prefix:

releases/ID/…    complete releases, named by content; release.json describes one, .stat.json tells if a file changed,
                 .proven numbers those that once answered a chat, in that order
incoming/ID/…    a release on its way; NAME.part is half a file
current          symlink to the release that runs
unproven.json    a release is being tried: which, and which one to go back to
activation.log   what the last activation said
"""

from __future__ import annotations

import os
import pwd
import subprocess

from .activation import activate, guard, remove
from .files import (
    activation_goes_on,
    current_of,
    finish,
    incoming_state,
    load,
    lock,
    print_answer,
    receive,
    refuse,
    release_state,
    subfolders,
    text_of,
)
from .safe_paths import why_unsafe
from .service import is_active, is_ready, units_of


def state(prefix: str, rule: str) -> None:
    """Everything a plan compares with. Nothing is changed."""
    current = current_of(prefix)
    manifest = load(f"{prefix}/releases/{current}/release.json") if current else {}
    folder, user = f"{prefix}/releases/{current}", manifest.get("user") or "rkchatd"
    try:
        entry = pwd.getpwnam(user)
        groups = subprocess.run(["id", "-Gn", user], stdout=subprocess.PIPE, text=True).stdout.split()
        uid = entry.pw_uid
    except KeyError:
        groups, uid = [], None
    print_answer(
        ok=True,
        exists=os.path.isdir(prefix),
        releases={name: release_state(f"{prefix}/releases/{name}") for name in subfolders(prefix + "/releases")},
        incoming={name: incoming_state(f"{prefix}/incoming/{name}") for name in subfolders(prefix + "/incoming")},
        current=current,
        unproven=load(prefix + "/unproven.json"),
        activating=activation_goes_on(prefix),
        units=all(text_of(source) == text_of(place) for source, place in units_of(folder, manifest)),
        rule=text_of(rule) if rule else "",
        user=uid is not None,
        groups=groups,
        keys=os.path.isfile(prefix + "/keys") and os.path.getsize(prefix + "/keys") > 0,
        active=bool(manifest) and is_active(prefix, manifest),
        ready=bool(manifest) and is_ready(manifest["port"])[0],
    )


def check_prefix(prefix: str) -> None:
    """For the doctor: what a deployment would be refused for."""
    print_answer(ok=True, wrong=why_prefix_unsafe(prefix))


COMMANDS = {f.__name__: f for f in (state, check_prefix, receive, finish, activate, guard, remove, lock)}
# Which of a command's words is the prefix that has to be safe; `receive` is given paths and checks them itself.
PREFIX_AT = {"state": 0, "finish": 0, "activate": 0, "remove": 0, "lock": 2}


def main(words: list[str]) -> None:
    name, *rest = words
    os.chdir("/")  # the current folder may be one in which others have put files
    if name in PREFIX_AT:
        refuse_unsafe_prefix(rest[PREFIX_AT[name]], *((f"releases/{rest[1]}/agent.pyz",) if name == "activate" else ()))
    COMMANDS[name](*rest)


def why_prefix_unsafe(prefix: str, *more: str) -> str:
    """Why others could put there what is run from a prefix; "" where nobody could."""
    found = (why_unsafe(f"{prefix}/{path}") for path in ("", "releases", "incoming", *more))
    return next(filter(None, found), "")


def refuse_unsafe_prefix(prefix: str, *more: str) -> None:
    """Refuse to do anything at a prefix where others could put what is run from there."""
    wrong = why_prefix_unsafe(prefix, *more)
    if wrong:
        refuse(wrong)
