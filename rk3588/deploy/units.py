"""How the daemon is run on a board: its configuration, the units of systemd or what stands in for them, the udev rule.

Pure: texts from what is asked for and the board's facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rk3588.resources import packaged

from .facts import Facts
from .layout import PYTHON, STATE_DIR, USER
from .release_files import File, from_text
from .release_spec import ReleaseSpec
from .shell import command

_KEEPER = """\
#!/bin/sh
# Keeps rkchatd running where there is no systemd: started again when it ends, more slowly each time.
delay=1
while :; do
  @COMMAND@
  echo "$?" >> @EXIT_CODES@
  [ "$(wc -c < @LOG@)" -lt 5000000 ] || : > @LOG@
  sleep $delay
  [ $delay -ge 60 ] || delay=$((delay * 2))
done
"""


def configuration(spec: ReleaseSpec, facts: Facts) -> str:
    here = f"{spec.prefix}/current"
    settings: dict[str, Any] = {
        "bundle": f"{here}/bundle",
        "library": f"{here}/librkllmrt.so",
        "sim_library": f"{here}/librksim.so",
        "listen": f"{spec.listen}:{spec.port}",
        "keys": f"{spec.prefix}/keys",
    }
    if facts.systemd is not None:
        settings["state_dir"] = STATE_DIR
    settings.update(spec.settings)
    return "# Written by rk3588 deploy; it belongs to this release.\n" + yaml.safe_dump(settings, sort_keys=False)


def daemon_command(spec: ReleaseSpec, facts: Facts) -> list[str]:
    here = f"{spec.prefix}/current"
    return [facts.python_path or PYTHON, "-I", f"{here}/rkchatd.pyz", "--config", f"{here}/rkchatd.yaml"]


def service_files(spec: ReleaseSpec, facts: Facts, patience: int) -> list[File]:
    """What starts the daemon and keeps it running; ``patience``: seconds until it has to answer."""
    if facts.systemd is None:
        keeper = _KEEPER.replace("@COMMAND@", command(*daemon_command(spec, facts)))
        keeper = keeper.replace("@LOG@", command(f"{spec.prefix}/rkchatd.log"))
        return [from_text("keep.sh", keeper.replace("@EXIT_CODES@", command(f"{spec.prefix}/keeper.ends")), 0o755)]
    # The real runtime moves itself to the big cores; the simulated one would stay where it is put.
    little = facts.little_cpus if spec.runtime else ()
    values = {
        "PREFIX": spec.prefix,
        "PYTHON": facts.python_path or PYTHON,
        "COMMAND": command(*daemon_command(spec, facts)),
        "USER": USER,
        "GROUPS": f"SupplementaryGroups={npu_group(facts)}" if npu_group(facts) != USER else "",
        "LOAD": str(patience),
        "BACKOFF": "RestartSteps=6\nRestartMaxDelaySec=300" if facts.systemd >= 254 else "",
        "AFFINITY": f"CPUAffinity={' '.join(map(str, little))}" if little else "",
    }
    files = [from_text("rkchatd.service", fill_template("rkchatd.service", values))]
    if spec.pin and facts.clocks and spec.runtime is not None:
        script = Path(__file__).parent / "board" / "clocks.py"
        files += [
            from_text("rkchatd-clocks.service", fill_template("rkchatd-clocks.service", values)),
            from_text("clocks.py", script.read_bytes()),
        ]
    return files


def npu_group(facts: Facts) -> str:
    """The group that the NPU's device files get: what the board has for it, else the daemon's own."""
    return next((group for group in ("render", "video") if group in facts.known_groups), USER)


def udev_rule(facts: Facts) -> str:
    return fill_template("70-rkchatd.rules", {"GROUP": npu_group(facts)})


def fill_template(name: str, values: Mapping[str, str]) -> str:
    """A template of ``data/`` with @NAME@ replaced; a line that held only an empty one goes."""
    lines = []
    for line in packaged(f"data/{name}").read_text(encoding="utf-8").splitlines():
        filled = line
        for key, value in values.items():
            filled = filled.replace(f"@{key}@", value)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"
