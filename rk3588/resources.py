"""Files that ship inside the package ``rk3588``: libraries, the catalogue of boards, the data behind predictions."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .errors import LibraryError


def packaged(name: str) -> Path:
    """Path of a packaged file, such as ``lib/librksim.so`` or ``boards.yaml``; LibraryError when it is not there.

    Through importlib.resources: in an editable install the file does not lie beside the sources. In a source tree
    that is not installed, ``boards.yaml`` lies one folder above the package.
    """
    path = Path(str(resources.files("rk3588").joinpath(name)))
    if path.is_file():
        return path
    top = Path(__file__).resolve().parent.parent
    # site-packages is no source tree: what lies there under this name is somebody else's.
    if (top / "pyproject.toml").is_file() and (top / name).is_file():
        return top / name
    raise LibraryError(f"{name} is not in this installation of rk3588: reinstall it (pip install rk3588)")
