"""Where a deployment's things lie on a board, and what they are called."""

from __future__ import annotations

PREFIX = "/opt/rkchatd"
USER_PREFIX = ".local/share/rkchatd"  # below the home folder, where there is no systemd
RULE = "/etc/udev/rules.d/70-rkchatd.rules"
USER = "rkchatd"
STATE_DIR = "/var/lib/rkchatd"  # the unit's StateDirectory: loads that took the board down are remembered there
# Settings of the daemon that are the deployment's own.
OUR_SETTINGS = ("bundle", "library", "sim_library", "listen", "keys", "state_dir")
PORT = 8080
PYTHON = "/usr/bin/python3"
LOOPBACK, LAN = "127.0.0.1", "0.0.0.0"
