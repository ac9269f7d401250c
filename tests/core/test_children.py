"""A child Python runs what its parent runs, and nothing that lies in the current folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipapp
from pathlib import Path

import pytest

from rk3588 import children
from tests import interpreters

ROOT = Path(__file__).resolve().parent.parent.parent
STRAYS = ("jinja2", "subprocess", "runpy", "json", "click", "sitecustomize", "venv", "pip")
# The parent: starts a child that says where it found the package that both of them run.
PARENT = """
import subprocess, sys
from rk3588 import children
child = children.python("rk3588.tell", "two words", "")
sys.exit(subprocess.run(child.command, env=child.environment).returncode)
"""
TELL = """
import json, sys
import jinja2, rk3588, helper
print(json.dumps({"code": rk3588.__file__, "helper": helper.__file__, "jinja2": jinja2.__file__,
                  "argv": sys.argv[1:], "name": __name__}))
"""


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """A folder with another rk3588, and modules that leave a file behind when they are imported."""
    folder = tmp_path / "littered"
    for package in ("rk3588", "rkruntime", "rkconvert"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(_trap(package))
    for name in STRAYS:
        (folder / f"{name}.py").write_text(_trap(name))
    return folder


def _trap(name: str) -> str:
    return f"open({name + '.was-imported'!r}, 'w').close()\nraise ImportError('a stray {name}')\n"


def untouched(folder: Path) -> None:
    assert [path.name for path in folder.glob("*.was-imported")] == []


def small(folder: Path) -> Path:
    """A folder to import from: the part of rk3588 that starts children, what it needs, and the child's program."""
    (folder / "rk3588").mkdir(parents=True)
    (folder / "rk3588" / "__init__.py").write_text("")
    shutil.copy(ROOT / "rk3588" / "children.py", folder / "rk3588")
    (folder / "rk3588" / "tell.py").write_text(TELL)
    (folder / "helper.py").write_text("")
    (folder / "jinja2.py").write_text("")
    return folder


def told(command: list[str], cwd: Path, **environment: str) -> dict[str, object]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert (found["argv"], found["name"]) == (["two words", ""], "__main__")
    return found


def pythons() -> list[str]:
    """Without the editable install of this one's venv, which would be found before anything else."""
    oldest = interpreters.python(9)
    return [str(Path(sys.base_prefix) / "bin" / "python3"), *([oldest] if oldest else [])]


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("before", ["", ".", "LITTERED"])
def test_from_pythonpath_without_the_current_folder(python: str, before: str, littered: Path, tmp_path: Path) -> None:
    """PYTHONPATH=":/x" names the current folder, too. What the parent imports of it is its user's business, so the
    litter comes when that has begun."""
    ours = small(tmp_path / "ours")
    litter = littered.rename(tmp_path / "litter")
    littered.mkdir()
    program = tmp_path / "program.py"
    come = f"import shutil; shutil.copytree({str(litter)!r}, '.', dirs_exist_ok=True)\nchild ="
    program.write_text(PARENT.replace("child =", come, 1))
    path = f"{before.replace('LITTERED', str(littered))}:{ours}:{before}"
    found = told([python, str(program)], littered, PYTHONPATH=path)
    assert found["code"] == str(ours / "rk3588" / "__init__.py")
    untouched(littered)


@pytest.mark.parametrize("python", pythons())
def test_from_the_user_site(python: str, littered: Path, tmp_path: Path) -> None:
    """`pip install --user`, and a .pth file there, as an editable install has one."""
    code = "import site; print(site.getusersitepackages())"
    base = {"PYTHONUSERBASE": str(tmp_path / "base")}
    site = Path(subprocess.check_output([python, "-c", code], env={**os.environ, **base}, text=True).strip())
    small(site)
    (site / "helper.py").rename(tmp_path / "helper.py")
    (site / "editable.pth").write_text(f"import sys; sys.path.append({str(tmp_path)!r})\n")
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text(PARENT)
    found = told([python, str(program)], littered, **base)
    assert found["code"] == str(site / "rk3588" / "__init__.py")
    assert found["helper"] == str(tmp_path / "helper.py")
    untouched(littered)


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("flags", [(), ("-I",)])
def test_from_a_zipapp_named_by_a_relative_path(
    python: str, flags: tuple[str, ...], littered: Path, tmp_path: Path
) -> None:
    source = small(tmp_path / "source")
    (source / "__main__.py").write_text(PARENT)
    zipapp.create_archive(source, littered / "app.pyz")
    found = told([python, *flags, "app.pyz"], littered)
    assert found["code"] == str(littered / "app.pyz" / "rk3588" / "__init__.py")
    untouched(littered)


@pytest.mark.parametrize("python", pythons())
def test_from_the_current_folder_where_that_is_where_we_are(python: str, tmp_path: Path) -> None:
    ours = small(tmp_path / "ours")
    found = told([python, "-c", PARENT], ours)
    assert found["code"] == str(ours / "rk3588" / "__init__.py")


def test_the_current_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/somewhere"])
    assert children.import_path() == ["/usr/lib/somewhere"]


CHILDREN = {
    "worker": """
        import asyncio
        from pathlib import Path
        from rkruntime.daemon.process import WorkerProcess
        from rkruntime.settings import Settings
        async def main():
            worker = await WorkerProcess.start(print)
            frame = await worker.load(Path("/nowhere"), Settings().frame(), 30)
            assert frame["event"] == "failed" and "/nowhere" in frame["message"], frame
            await worker.close(10)
        asyncio.run(main())
    """,
    "schema check": """
        import asyncio
        from rkruntime.daemon.jsonformat import Checker, Format
        assert asyncio.run(Format({"type": "object"}).problem("3", Checker())) == "3 is not of type 'object'"
    """,
    "sweep cell": """
        from rkconvert.sweep import cell_process
        result = cell_process.run(["/nowhere", "-o", "/nowhere", "--dtype", "w8a8"])
        assert result["reason"].startswith("/nowhere"), "reason"
    """,
    "simulated board": """
        from rk3588 import boards
        from rk3588.simboard import control
        control.up("littered", boards.load().boards["rock-5b"])
        control.down("littered")
    """,
}


@pytest.mark.parametrize("name", list(CHILDREN))
def test_every_child_in_a_littered_folder(name: str, littered: Path, tmp_path: Path) -> None:
    """Started by a program that is installed (here: found through site-packages) and runs in that folder."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(CHILDREN[name]))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "PYTHONPATH": ""}
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=littered, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    untouched(littered)
