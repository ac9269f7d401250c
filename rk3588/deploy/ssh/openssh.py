"""ssh's own word on its configuration: ``ssh -G`` reads every line as a connection would."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

from rk3588.errors import ConnectError

from .tokens import expand_home
from .words import LINE, words

ConfigValues = dict[str, list[str]]  # a keyword in small letters → its values, one for each line
SECONDS = 30.0  # a Match may run a program, and a name may have to be looked up
_DEPTH = 16  # of Include
# Lines with paths; ssh takes the home folder for them from the system's list of users, whatever HOME says.
_PATHS = ("userknownhostsfile", "globalknownhostsfile", "identityagent")


class QueryUnsupported(Exception):
    """This ssh is too old for its own configuration, or for the question; its text says which."""


def client() -> Optional[str]:
    """The ssh client; None where there is none that would read a configuration for this user."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return None  # ssh ends at once for a user without a name
    return shutil.which("ssh")


def query(
    program: str, host: str, user: Optional[str], port: Optional[int], config: Optional[Path], system: Path
) -> ConfigValues:
    """What ssh has configured for ``host``; ConnectError with its own words, which name file and line."""
    with _file_for_ssh(config, system) as (file, names):
        options = [*(("-F", str(file.absolute())) if file else ()), *(("-l", user) if user else ())]
        options += ["-p", str(port)] if port else []
        code, out, err = _run([program, "-G", *options, "--", host], host)
    for temporary, real in names.items():
        err = err.replace(temporary, real)
    if code:
        if re.search(r"Unsupported Match attribute|missing argument for Match '!?\w+=", err):
            raise QueryUnsupported("it does not know a word of a Match line")
        if re.match(r"(unknown|illegal) option -- G", err):
            raise QueryUnsupported("it is older than 6.8")
        reasons = [line.strip() for line in err.splitlines() if not line.startswith("Pseudo-terminal")]
        reason = reasons[0] if reasons else f"exit code {code}"
        raise ConnectError(f"cannot read ssh's configuration for {host}: {reason}")
    said: ConfigValues = {}
    for line in out.splitlines():
        key, _, value = line.partition(" ")
        said.setdefault(key.lower(), []).append(value)
    return said


def _run(command: Sequence[str], host: str) -> tuple[int, str, str]:
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a Match runs, too
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise ConnectError(
                f"cannot read ssh's configuration for {host}: ssh -G took more than {SECONDS:.0f} s. Does a Match "
                "run a program that waits, or is a name looked up that nobody answers for?"
            ) from error
    return process.returncode, os.fsdecode(out), os.fsdecode(err)


@contextlib.contextmanager
def _file_for_ssh(config: Optional[Path], system: Path) -> Iterator[tuple[Optional[Path], dict[str, str]]]:
    """The file to name to ssh, None for its usual ones; and whose place it takes where it is one that was made.

    ssh knows the home folder from the system's list of users. Where HOME says another, everything of ours lies there:
    then both files are written into one, with their paths as HOME has them.
    """
    home = Path.home()
    if home == Path(pwd.getpwuid(os.getuid()).pw_dir):
        yield config, {}
        return
    with tempfile.TemporaryDirectory(prefix="rk3588-ssh-") as folder:
        moved = _RelocatedFiles(Path(folder), home)
        ours = home / ".ssh"
        files = [(config, ours)] if config else [(ours / "config", ours), (system, system.parent)]
        lines = [f'Include "{moved.copy(file, base)}"' for file, base in files if file.is_file()]
        known = " ".join(f'"{ours}/{name}"' for name in ("known_hosts", "known_hosts2"))
        lines += ["Host *", f"  UserKnownHostsFile {known}"]  # last: where no file says another
        top = Path(folder) / "config"
        top.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
        yield top, moved.names


class _RelocatedFiles:
    """Files of a configuration written anew into ``folder``, their lines and line numbers as they are."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder = folder
        self._home = home
        self.names: dict[str, str] = {}  # temporary → real

    def copy(self, file: Path, base: Path, depth: int = 0) -> Path:
        if depth > _DEPTH:
            raise ConnectError(f"{file}: Include is nested more than {_DEPTH} deep: does a file include itself?")
        try:
            text = file.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise ConnectError(f"cannot read ssh's configuration ({file}): {error.strerror}") from error
        lines = [self._line(line, base, depth) for line in text.split("\n")]
        made = self._folder / f"{len(self.names)}.conf"
        self.names[str(made)] = str(file)
        made.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        return made

    def _line(self, line: str, base: Path, depth: int) -> str:
        match = LINE.match(line)
        key = match[1].lower() if match else ""
        if key in _PATHS:
            return re.sub(r'(?<=[\s"=])~/', lambda _: f"{self._home}/", line)
        if key != "include" or not match:
            return line
        try:
            found = [path for pattern in words(match[2]) for path in included(pattern, base)]
        except ValueError:
            return line  # ssh says what is wrong with it
        copies = [f'"{self.copy(path, base, depth + 1)}"' for path in found]
        return f"Include {' '.join(copies)}" if copies else ""


def included(pattern: str, base: Path) -> list[Path]:
    """The files that an Include names; a relative one is looked for in ``base``."""
    whole = str(base / expand_home(pattern))
    return [Path(path) for path in sorted(glob.glob(whole)) if Path(path).is_file()]  # noqa: PTH207
