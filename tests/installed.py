"""`make test-installed`: the wheel as somebody has it who used pip, on the newest Python there is and on the oldest.

Each time from the clone's folder, where another rk3588 lies, and from one where strays lie: the first converts SmolLM2,
then each runs, chats, serves, and deploys to a simulated board.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests import interpreters, quickstart, sshd
from tests.deploying import answer_of
from tests.models import smollm2_gguf

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "installed"
OLDEST, NEWEST = 9, 20
EXTRAS = "[chat,daemon,deploy]"
QUESTION = "What is the capital of France?"
GREEDY = ("--top-k", "1", "--repeat-penalty", "1")
STRAYS = ("jinja2", "subprocess", "json", "click", "paramiko", "uvicorn", "pip", "venv", "sitecustomize")
UNSOUND = {"type": "json_schema", "json_schema": {"schema": {"type": "objet"}}}
SECONDS = 120.0


@dataclass(frozen=True)
class Installed:
    """Where a wheel's programs are, and how they are called: from ``folder``, with no trace of this environment."""

    programs: Path
    folder: Path
    home: Path
    python: Path

    @property
    def environment(self) -> dict[str, str]:
        ours = ("PYTHON", "RKSIM_", "RKLLM_", "VIRTUAL_ENV", "XDG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        path = f"{self.programs}:{kept['PATH']}"
        homes = {f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("STATE", "CONFIG", "DATA", "CACHE")}
        return {**kept, **homes, "PATH": path, "RK3588_HOSTS": "/dev/null", "PYTHONUSERBASE": str(self.home / "base")}

    def run(self, program: str, *arguments: object, said: str = "", code: int = 0) -> str:
        """What it prints; SystemExit if it does not end with ``code``. ``said`` goes to its stdin."""
        command = [str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, input=said, capture_output=True, text=True, timeout=SECONDS
        )
        if done.returncode != code or "Traceback" in done.stderr:
            fail(f"{' '.join(command)} in {self.folder}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if code == 0 else done.stderr

    @contextmanager
    def serving(self, *command: object, url: str = "") -> Iterator[str]:
        """A daemon that is ready, and its URL; given one, the command stays as it is."""
        words = list(map(str, command))
        if not url:
            url = f"http://127.0.0.1:{sshd.free_port()}"
            words += ["--listen", url.removeprefix("http://"), *GREEDY]
        with (self.home / "daemon.log").open("wb") as log:
            daemon = subprocess.Popen(words, cwd=self.folder, env=self.environment, stderr=log)
        try:
            deadline = time.monotonic() + SECONDS
            while asked(f"{url}/ready")[0] != 200:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    fail(f"{' '.join(words)} in {self.folder}: not ready\n{(self.home / 'daemon.log').read_text()}")
                time.sleep(0.1)
            yield url
        finally:
            daemon.send_signal(signal.SIGTERM)
            if daemon.wait(SECONDS):
                fail(f"{' '.join(words)}: exit code {daemon.returncode}\n{(self.home / 'daemon.log').read_text()}")


def asked(url: str, body: object = None) -> tuple[int, str]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def fail(why: str) -> Any:
    raise SystemExit(f"\nError: {why}")


@contextmanager
def step(what: str) -> Iterator[None]:
    print(f"{what} ".ljust(72, "."), end=" ", flush=True)
    started = time.monotonic()
    yield
    print(f"{time.monotonic() - started:5.1f} s", flush=True)


def build_wheel() -> Path:
    """The wheel, with the daemon for boards in it; what the editable install compiled is not compiled again."""
    shutil.rmtree(BUILD / "wheel", ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(BUILD / "wheel")]
    settings = ["-Cbuild-dir=build/{wheel_tag}-editable", "-Ccmake.define.RKCHATD_PYZ=ON"]
    done = subprocess.run([*command, *settings, str(ROOT)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        fail(f"the wheel cannot be built:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (wheel,) = (BUILD / "wheel").glob("*.whl")
    return wheel


def install(python: str, home: Path, wheel: Path, extras: str, folder: Path) -> Installed:
    """Into a fresh venv."""
    pip(python, "-m", "venv", str(home / "venv"))
    programs = home / "venv" / "bin"
    pip(str(programs / "python"), "-m", "pip", "install", f"{wheel}{extras}")
    return Installed(programs, folder, home, programs / "python")


def install_for_user(python: str, home: Path, wheel: Path, extras: str, folder: Path) -> Installed:
    """`pip install --user`, into a home of its own."""
    variables = {"PYTHONUSERBASE": str(home / "base"), "PIP_BREAK_SYSTEM_PACKAGES": "1"}
    pip(python, "-m", "pip", "install", "--user", "--no-warn-script-location", f"{wheel}{extras}", **variables)
    return Installed(home / "base" / "bin", folder, home, Path(python))


def pip(*command: str, **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    done = subprocess.run(command, cwd=BUILD, env=environment, capture_output=True, text=True)
    if done.returncode:
        fail(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def litter(folder: Path) -> Path:
    """A folder of strays, none of which may ever be run."""
    folder.mkdir()
    for name in STRAYS:
        (folder / f"{name}.py").write_text(f"raise ImportError('a stray {name} was run')\n")
    for name in ("rk3588", "rkruntime", "rkconvert"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('a stray {name} was run')\n")
    return folder


def talk(here: Installed, bundle: Path) -> None:
    """`run`, `chat`, `serve`, and `bench` of both."""
    short = ("-n", 12, *GREEDY)
    answer = here.run("rk3588", "run", bundle, QUESTION, *short)
    chatted = here.run("rk3588", "chat", bundle, *short, said=f"{QUESTION}\n")
    with here.serving(here.programs / "rk3588", "serve", bundle) as url:
        check_served(url, answer)
        quick = ("-p", 16, "-n", 8, "-r", 1, "--ttft", 0, "-o", "jsonl")
        for target in (bundle, url):
            rows = [json.loads(line) for line in here.run("rk3588", "bench", target, *quick).splitlines()]
            if [(row["test"], row["avg_ts"] > 0) for row in rows] != [("pp16", True), ("tg8", True)]:
                fail(f"bench {target} said {rows}")
    if "Paris" not in answer or "Paris" not in chatted:
        fail(f"run said {answer!r}, chat said {chatted!r}")


def check_served(url: str, expected: str) -> None:
    """Over HTTP it says the same; an unsound schema is judged, which takes a process of its own."""
    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    status, body = asked(f"{url}/v1/chat/completions", chat)
    answer = json.loads(body)["choices"][0]["message"]["content"] if status == 200 else body
    if answer.strip() != expected.strip():
        fail(f"run said {expected!r}, the daemon {status}: {answer!r}")
    status, body = asked(f"{url}/v1/chat/completions", {**chat, "response_format": UNSOUND})
    if status != 400 or "'objet' is not valid" not in body:
        fail(f"the schema check answered {status}: {body}")


def deploy(here: Installed, bundle: Path) -> None:
    """To a simulated board, with what the wheel brought; then everything is taken away again."""
    here.run("rk3588", "board", "up", "installed", "--board", "rock-5b")
    try:
        port = sshd.free_port()
        settings = ("--set", "top_k=1", "--set", "repeat_penalty=1", "--port", port)
        here.run("rk3588", "deploy", bundle, "--board", "installed", "--runtime", "sim", *settings)
        (keys,) = (here.home / "state").glob("**/rkchatd/keys")
        answer = answer_of(port, keys.read_text().strip().rpartition(":")[2])
        if not answer.strip():
            fail("the deployed daemon says nothing")
        here.run("rk3588", "remove", "installed", "--yes")
        if asked(f"http://127.0.0.1:{port}/health")[0] or keys.exists():
            fail("`rk3588 remove` left something")
    finally:
        here.run("rk3588", "board", "down", "installed")


def follow_quickstart(here: Installed, bundle: Path) -> None:
    """What it prints at its end, as printed, but with this installation's programs; `serve` runs to the end."""
    for port in (quickstart.PORT, quickstart.PORT + 1):
        if asked(f"http://127.0.0.1:{port}/")[0]:
            fail(f"port {port} of this machine is taken: end what listens there, and try again")
    with contextlib.ExitStack() as running:
        for line in quickstart.following(bundle):
            command = line.replace(".venv/bin/", f"{here.programs}/")
            if " serve " in line:
                running.enter_context(here.serving(*shlex.split(command), url=f"http://127.0.0.1:{quickstart.PORT}"))
                continue
            said = f"{QUESTION}\n" if " chat " in line else ""
            done = subprocess.run(
                ["sh", "-ec", command.replace("; ", "\n")], cwd=here.folder, env=here.environment, input=said,
                capture_output=True, text=True, timeout=SECONDS,
            )  # fmt: skip
            if done.returncode or "Traceback" in done.stderr:
                fail(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def run_zipapp(here: Installed, wheel: Path, bundle: Path) -> None:
    """The one in the wheel, by a relative path, in a littered folder."""
    with zipfile.ZipFile(wheel) as archive:
        (here.folder / "rkchatd.pyz").write_bytes(archive.read("rk3588/rkchatd.pyz"))
        libraries = here.home / "libraries"
        archive.extractall(libraries, ["rk3588/lib/librkllmrt.so", "rk3588/lib/librksim.so"])
    lib = libraries / "rk3588" / "lib"
    given = ("--library", lib / "librkllmrt.so", "--sim-library", lib / "librksim.so", "--bundle", bundle)
    expected = here.run("rk3588", "run", bundle, QUESTION, "-n", 12, *GREEDY)
    with here.serving(here.python, "rkchatd.pyz", *given) as url:
        check_served(url, expected)


def newest() -> str:
    return next(found for minor in range(NEWEST, 9, -1) if (found := interpreters.python(minor)))


def main() -> None:
    started = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    with step("build the wheel"):
        wheel = build_wheel()
    with tempfile.TemporaryDirectory() as name:
        strays = litter(Path(name) / "strays")
        with step(f"install it for {newest()}"):
            new = install(newest(), Path(name) / "new", wheel, "[chat,convert,daemon,deploy]", ROOT)
        with step("convert SmolLM2"):
            out = new.run("rkconvert", smollm2_gguf(), "-o", Path(name) / "out", "--dtype", "w8a8")
            bundle = Path(out.strip())
        walk(new, bundle, strays)
        with step("what quickstart prints next"):
            follow_quickstart(new, bundle)
        oldest = interpreters.python(OLDEST)
        if oldest is None:
            print(f"There is no Python 3.{OLDEST} on this machine: skipped")
        else:
            with step(f"install it for {oldest}"):
                old = install(oldest, Path(name) / "old", wheel, EXTRAS, ROOT)
            told = old.run("rkconvert", "MODEL", "--help", code=1)
            if not told.startswith("Error: rkconvert needs Python 3.10 or newer, and this is 3.9:"):
                fail(f"rkconvert on 3.9 says {told!r}")
            walk(old, bundle, strays)
            with step("pip install --user, and the zipapp, among strays"):
                user = install_for_user(oldest, Path(name) / "user", wheel, EXTRAS, strays)
                talk(user, bundle)
                run_zipapp(user, wheel, bundle)
    print(f"The wheel works: {time.monotonic() - started:.0f} s.")


def walk(here: Installed, bundle: Path, strays: Path) -> None:
    for place, folder in (("in the clone's folder", ROOT), ("among strays", strays)):
        with step(f"run, chat and serve {place}"):
            talk(replace(here, folder=folder), bundle)
        with step(f"deploy, chat and remove {place}"):
            deploy(replace(here, folder=folder), bundle)


if __name__ == "__main__":
    main()
