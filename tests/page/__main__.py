"""The chat page in Chromium: ``make test-page``. Skipped, with the reason, where there is no browser to be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import models, smollm2

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = ROOT / "build" / "node" / "node_modules"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """What stands in the way of these tests; "" for nothing."""
    if shutil.which("node") is None:
        return "there is no node on this machine"
    if not any(map(shutil.which, CHROMIUM)):
        return "there is no Chromium on this machine"
    absent = [name for name in ("playwright-core", "axe-core") if not (MODULES / name).is_dir()]
    return f"{', '.join(absent)} was not fetched from the npm registry" if absent else ""


def main() -> int:
    if reason := missing():
        print(f"the tests of the chat page are skipped: {reason} (see .ci/setup browser)", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        smollm2.convert(models.tiny_llama(Path(folder) / "source"), Path(folder), ["w8a8"], name="tiny")
        told = {
            "PAGE_BUNDLE": f"{folder}/tiny-rk3588-w8a8",
            "PAGE_PYTHON": sys.executable,
            "PAGE_CHROMIUM": next(filter(None, map(shutil.which, CHROMIUM))),
            "PAGE_MODULES": str(MODULES),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'convert'}:{ROOT / 'runtime'}",
        }
        tests = sorted(str(path) for path in Path(__file__).parent.glob("*.test.mjs"))
        command = ["node", "--test", "--test-concurrency=1", "--test-timeout=600000", *sys.argv[1:], *tests]
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **told}).returncode


if __name__ == "__main__":
    sys.exit(main())
