"""Files that ship inside the package ``rk3588``: libraries, the catalogue of boards, the data behind predictions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Optional

from .errors import LibraryError

_SOURCES = {"web": "runtime/web"}  # where folders of the package lie in a clone
_SETTINGS = {"lib/librkllmrt.so": "library", "lib/librksim.so": "sim_library"}  # what says where they are instead


def packaged(name: str) -> Path:
    """Path of a packaged file, such as ``lib/librksim.so`` or ``boards.yaml``; LibraryError when it is not there.

    Through importlib.resources: in an editable install the file does not lie beside the sources. In a source tree
    that is not installed, ``boards.yaml`` lies one folder above the package.
    """
    path = Path(str(resources.files("rk3588").joinpath(name)))
    if path.is_file():
        return path
    top = source_tree()
    if top and (top / name).is_file():
        return top / name
    if top:
        raise LibraryError(
            f"{name} is not in {top}, a clone of rk3588 that is not installed: run `make quickstart` there, or, where "
            "rk3588 is installed, call it from another folder"
        )
    if not Path(__file__).is_file() and name in _SETTINGS:
        setting, file = _SETTINGS[name], name.rpartition("/")[2]
        raise LibraryError(
            f"{file} is not in this zipapp, which carries no libraries: give the path of one with "
            f"--{setting.replace('_', '-')} FILE, or as `{setting}` in the file of --config"
        )
    raise LibraryError(f"{name} is not in this installation of rk3588: reinstall it (pip install rk3588)")


def read(name: str) -> bytes:
    """Content of a packaged file, out of a zipapp as well; LibraryError when it is not there."""
    inside = resources.files("rk3588").joinpath(name)
    return inside.read_bytes() if inside.is_file() else packaged(name).read_bytes()


def folder(name: str) -> dict[str, bytes]:
    """All files of a packaged folder by their paths in it, out of a zipapp as well; a clone's own in a clone."""
    top: Any = source_tree()
    top = resources.files("rk3588").joinpath(name) if top is None else top / _SOURCES.get(name, f"rk3588/{name}")
    if not top.is_dir():
        raise LibraryError(f"{name}/ is not in this installation of rk3588: reinstall it (pip install rk3588)")
    return dict(_files_below(top, ""))


def _files_below(top: Any, where: str) -> Iterator[tuple[str, bytes]]:
    for each in sorted(top.iterdir(), key=lambda each: str(each.name)):
        if each.is_dir():
            yield from _files_below(each, f"{where}{each.name}/")
        else:
            yield f"{where}{each.name}", each.read_bytes()


def source_tree() -> Optional[Path]:
    """The clone this package runs from; None where it is installed: what lies in site-packages is somebody else's."""
    top = Path(__file__).resolve().parent.parent
    return top if (top / "pyproject.toml").is_file() else None
