"""The agent (``board/``) as one zip that a board's Python runs: sent with each question, and part of each release."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

_PACKAGES = ("rk3588", "rk3588/deploy", "rk3588/deploy/board")
_MODULES = ("safe_paths", "files", "service", "activation", "agent")
_MAIN = "import sys\nfrom rk3588.deploy.board.agent import main\nmain(sys.argv[1:])\n"


def agent_zip() -> bytes:
    """The same bytes for the same sources."""
    folder, out = Path(__file__).parent / "board", io.BytesIO()
    content = {f"{package}/__init__.py": b"" for package in _PACKAGES}
    content.update({f"rk3588/deploy/board/{name}.py": (folder / f"{name}.py").read_bytes() for name in _MODULES})
    with zipfile.ZipFile(out, "w") as archive:
        for name, source in {**content, "__main__.py": _MAIN.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED)  # ZipInfo: dated 1980
    return out.getvalue()
