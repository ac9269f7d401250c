"""A PEP 517 back end that needs nothing: the double installs with any pip, without a network.

``write_wheel`` makes wheels with tags like those of Rockchip's; the version always says that it is the double.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, VERSION = "rkllm_toolkit", "1.1.1+double"


def write_wheel(folder: Path, tag: str, version: str = VERSION) -> Path:
    """The wheel for e.g. ``cp310-cp310-linux_x86_64`` in ``folder``, the same bytes every time."""
    info = f"{NAME}-{version}.dist-info"
    files = {f"rkllm/{f.name}": f.read_bytes() for f in sorted((HERE / "rkllm").glob("*.py"))}
    files["rkllm/_version.py"] = f'VERSION = "{version}"\n'.encode()
    files[info + "/METADATA"] = f"Metadata-Version: 2.1\nName: rkllm-toolkit\nVersion: {version}\n".encode()
    files[info + "/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[info + "/RECORD"] = "".join(f"{name},,\n" for name in [*files, info + "/RECORD"]).encode()
    path = folder / f"{NAME}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # with the epoch's date
    return path


def build_wheel(wheel_directory: str, _settings: object = None, _metadata: object = None) -> str:
    return write_wheel(Path(wheel_directory), "py3-none-any").name
