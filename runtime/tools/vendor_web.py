"""Libraries of the chat page, as they come from the npm registry: pinned by version and hash in ``vendor.json``.

    python3 runtime/tools/vendor_web.py            fetch what is pinned, check it, put it into runtime/web/vendor
    python3 runtime/tools/vendor_web.py --check    only compare what lies there; needs no network

A newer version: change ``version`` and ``integrity`` (`npm view NAME@VERSION dist.integrity`) of its package, run this.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent.parent / "web" / "vendor"
PINS = VENDOR / "vendor.json"
_MOST_BYTES = 1 << 20  # of a file that is taken


def wrong() -> list[str]:
    """What lies in the folder and is not as pinned, or is pinned and does not lie there."""
    pinned = {name: file["sha256"] for package in _pins() for name, file in package["files"].items()}
    found = [path for path in VENDOR.iterdir() if path.name != PINS.name]
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
    return sorted(name for name in pinned.keys() | there.keys() if pinned.get(name) != there.get(name))


def fetch() -> None:
    """Each package whole, by its hash; out of it the files that are wanted, whose hashes are written down."""
    packages = _pins()
    for package in packages:
        name = f"{package['name']}@{package['version']}"
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", "--pack-destination", folder, name]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"Error: `{' '.join(command)}` failed: {done.stderr.strip()[-2000:]}")
            (archive,) = Path(folder).iterdir()
            found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if found != package["integrity"]:
                sys.exit(f"Error: {name} is {found}, and {PINS.name} pins {package['integrity']}")
            with tarfile.open(archive) as opened:
                for target, file in package["files"].items():
                    content = opened.extractfile(f"package/{file['from']}")
                    assert content is not None, file
                    (VENDOR / target).write_bytes(data := content.read(_MOST_BYTES))
                    file["sha256"] = hashlib.sha256(data).hexdigest()
    PINS.write_text(json.dumps(packages, indent=2) + "\n", encoding="utf-8")


def _pins() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PINS.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare what lies there with what is pinned")
    if not parser.parse_args().check:
        fetch()
    if differing := wrong():
        sys.exit(f"Error: not as {PINS} pins it: {', '.join(differing)}")


if __name__ == "__main__":
    main()
