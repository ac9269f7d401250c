"""Whether nobody else can put a program where one is going to be run: every folder on the way has to be ours alone.

The rule of sshd's ChrootDirectory: where root runs what lies there, each is root's and nobody else may write in it; a
sticky folder, such as /tmp, is one that others write in. Where a user runs it, each is that user's or root's.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat

LINKS = 40  # symbolic links in one path, the kernel's limit


def why_unsafe(path: str) -> str:
    """Why others could put a program at PATH, and what mends it; "" where they cannot. What is not there is safe."""
    me = os.geteuid()
    current, rest, links = start_of(path)
    wrong = why_entry_unsafe(current, me)
    while rest and not wrong:
        name = rest.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            current = os.path.dirname(current)
            continue
        full = os.path.join(current, name)
        try:
            found = os.lstat(full)
        except FileNotFoundError:
            return ""  # it will be made by us, in a folder that was found safe
        except OSError as error:
            return f"cannot look at {full}: {error.strerror}"
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > LINKS:
                return f"{full} is a symbolic link that leads round in a circle: remove it"
            aim = os.readlink(full)
            current = "/" if aim.startswith("/") else current
            rest = aim.split("/") + rest
            continue
        current = full
        wrong = why_entry_unsafe(current, me)
    return wrong


def start_of(path: str) -> tuple[str, list[str], int]:
    """Where to begin, and the names from there on. A simulated board is its own folder; what lies above is not its."""
    tree = os.environ.get("RKBOARD_SYSROOT", "")
    top = os.path.dirname(tree)
    if tree and f"{path}/".startswith(top + "/"):
        return top, path[len(top) + 1 :].split("/"), 0
    return "/", path.split("/"), 0


def why_entry_unsafe(path: str, me: int) -> str:
    """What is wrong with one folder, or file."""
    found = os.lstat(path)
    who = "root" if me == 0 else name_of(me)
    runs = f"what lies there is run as {who}"
    other = "or give another --prefix"
    if found.st_uid not in (0, me):
        return f"{path} belongs to {name_of(found.st_uid)}, and {runs}: sudo chown {who}: {path}, {other}"
    if found.st_mode & stat.S_IWOTH:
        mend = f"chmod o-w {path}, {other}" if not found.st_mode & stat.S_ISVTX else "give another --prefix"
        return f"everybody may write in {path}, and {runs}: {mend}"
    if found.st_mode & stat.S_IWGRP and not (me and is_own_group(found.st_gid, me)):
        return f"the group {group_of(found.st_gid)} may write in {path}, and {runs}: chmod g-w {path}, {other}"
    return ""


def is_own_group(gid: int, me: int) -> bool:
    """Whether a group has nobody in it but us, as the group has that many systems make for each user."""
    try:
        mine = pwd.getpwuid(me)
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return False
    others = [user for user in pwd.getpwall() if user.pw_gid == gid and user.pw_uid != me]
    return mine.pw_gid == gid and members <= {mine.pw_name} and not others


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_of(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
