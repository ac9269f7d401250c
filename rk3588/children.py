"""How a child Python is started: it runs the code that this process runs, and nothing from the current folder.

``python -m`` would look for every module in the current folder first, where a clone of this project or somebody's
``jinja2.py`` may lie. So a child gets this process's ``sys.path``, without the current folder unless we ourselves came
from there. Python 3.9 has no ``-P``, and ``-I`` knows neither the zipapp nor what PYTHONPATH named.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple, Optional

_OURS = ("rk3588", "rkconvert", "rkruntime")
# Run before anything is imported but what `site` imports. What `site` found by itself (.pth files, an editable
# install's finder) stays; "" is the current folder.
_START = """\
import sys
count = int(sys.argv[2])
given = sys.argv[3 : 3 + count]
sys.path[:] = given + [entry for entry in sys.path if entry and entry not in given]
module = sys.argv[1]
del sys.argv[1 : 3 + count], count, given
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Child(NamedTuple):
    """What to start a process with; more arguments may be added to the command, more variables to the environment."""

    command: list[str]
    environment: dict[str, str]


def python(module: str, *arguments: str) -> Child:
    """A child Python that runs ``module`` as ``python -m`` would."""
    path = import_path()
    command = [sys.executable, *_flags(), "-c", _START, module, str(len(path)), *path, *arguments]
    # PYTHONPATH is in ``path`` already, and `site` would look there for a sitecustomize.
    return Child(command, {name: value for name, value in os.environ.items() if name != "PYTHONPATH"})


def signal_name(number: int) -> str:
    """What a signal that ended a process is called; most real-time signals have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def import_path() -> list[str]:
    """Where this process imports from, as absolute paths, without the current folder unless our code lies there."""
    here = _current()
    keep = here is not None and here in _our_folders()
    found = []
    for entry in sys.path:
        # A relative one may be right: the zipapp's path as it was typed.
        path = str(Path(entry).absolute()) if here is not None else entry
        if path and path not in found and (keep or os.path.realpath(path) != here):
            found.append(path)
    return found


def _current() -> Optional[str]:
    """The current folder; None where it has been removed."""
    try:
        return os.path.realpath(Path.cwd())
    except OSError:
        return None


def _our_folders() -> set[str]:
    """The folders our packages were imported from."""
    packages = [sys.modules[name] for name in _OURS if name in sys.modules]
    return {os.path.realpath(Path(folder).parent) for package in packages for folder in package.__path__}


def _flags() -> list[str]:
    """What this Python was told to ignore, its children ignore, too."""
    if sys.flags.isolated:
        return ["-I"]
    told = [("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site), ("-S", sys.flags.no_site)]
    return [flag for flag, said in told if said]
