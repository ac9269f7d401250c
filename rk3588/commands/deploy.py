"""``rk3588 deploy``: a bundle to a board, with a plan, a proof and a way back."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import yaml

from rk3588 import bundle as bundles
from rk3588 import rkllm
from rk3588 import runtime as runtimes
from rk3588.commands import connecting
from rk3588.commands.waiting import ElapsedSeconds, fitting
from rk3588.deploy import deployment, judge, layout, planning, shell
from rk3588.deploy.apply import Watcher
from rk3588.deploy.connection import Connection
from rk3588.deploy.deployment import Options, Outcome
from rk3588.deploy.steps import Activate, Send, Step, describe_plan, plan_as_json
from rk3588.errors import DeployError, UsageError, printable

_EVENTS = {
    "facts": "looking at the board",
    "state": "hashing what is there of earlier releases",
    "compare": "comparing with what is wanted",
    "remove": "taking everything away",
    "trial": "trying the new release beside the old one",
    "switch": "switching, and waiting for an answer",
    "back": "no answer: going back to the old release",
    "left": "the board goes on with it by itself: `rk3588 releases` shows what came of it",
    "waiting": "an earlier activation still goes on there: waiting for its end",
}
_WORTH_A_LINE = 1_000_000  # bytes of a file that is sent, where no bar is drawn
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


class Rate(click.ParamType):  # type: ignore[type-arg]
    """Bytes a second: 500k, 8M."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", str(value).lower())
        if not match or float(match[1]) <= 0:
            self.fail(f"{value!r} is no rate: give bytes a second, as in 500k or 8M", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--board", "name", required=True, metavar="NAME|USER@HOST[:PORT]|local", help="Where to.")
@click.option("--runtime", metavar="FILE|sim", help="Rockchip's librkllmrt.so, 1.1.0 to 1.3.1, or sim (sim-1.3).")
@click.option("--plan", "only_plan", is_flag=True, help="Print what would be run and sent; change nothing.")
@click.option("--expose", type=click.Choice(["loopback", "lan"]), help="Who may connect; if not said, as it is.")
@click.option("--port", type=click.IntRange(1024, 65535), help="Of the daemon; 8080, or as it is.")
@click.option("--pin/--no-pin", default=None, help="Highest clocks while the NPU is busy; else as it is.")
@click.option("--patience", type=click.IntRange(1, 3600), metavar="S", help="Until it has to answer; else by its size.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Of the daemon; else as they are.")
@click.option("--keep", type=click.IntRange(2, 50), default=planning.KEEP, show_default=True, help="Releases to keep.")
@click.option("--limit-rate", type=Rate(), metavar="RATE", help="Bytes a second at the most, as in 8M.")
@click.option("--yes", "sure", is_flag=True, help="Ask nothing but passwords.")
@click.option("--daemon", type=click.Path(path_type=Path), metavar="FILE", help="rkchatd.pyz, if not the packaged one.")
@click.option("--sim-library", type=click.Path(path_type=Path), metavar="FILE", help="librksim.so for the board.")
@click.option("--sim-runtime", type=click.Path(path_type=Path), metavar="FILE", help="The simulated librkllmrt.so.")
@click.option("--json", "as_json", is_flag=True, help="The outcome, or with --plan the plan, as JSON.")
@connecting.connection_options
def command(path: Path, name: str, runtime: str | None, expose: str | None, **given: Any) -> None:
    """Bring BUNDLE to a board and start the chat daemon on it.

    The old release serves again if the new one does not answer a chat. Run again after any failure: files that are
    there are not sent twice, and a board that is as wanted is left alone.
    """
    bundle = bundles.read(path)
    twin = runtime if runtime and runtimes.is_twin(runtime) else None
    library = Path(runtime) if runtime and not twin else None
    if twin:
        runtimes.twin_file(twin)  # there is one of that name
    files = {"runtime": library, **{name: given[name] for name in ("daemon", "sim_library", "sim_runtime")}}
    for option, file in files.items():
        if file is not None and not file.exists():
            raise UsageError(f"--{option.replace('_', '-')} {file}: there is no such file; give the path of one")
    options = Options(
        runtime=library,
        simulated=twin is not None,
        twin=twin or runtimes.SIM,
        daemon=given["daemon"],
        sim_library=given["sim_library"],
        sim_runtime=given["sim_runtime"],
        listen={None: None, "loopback": layout.LOOPBACK, "lan": layout.LAN}[expose],
        port=given["port"],
        pin=given["pin"],
        patience=given["patience"],
        settings=_settings(given["settings"]),
        keep=given["keep"],
        prefix=given["prefix"],
        rate=given["limit_rate"],
    )
    deployment.check_call(bundle, options)
    if not given["as_json"]:
        click.echo(printable(f"{name}: connecting, for {bundle.path}"), err=True)
    with connecting.open_connection(name, given["accept_new"], given["ssh_config"], given["hosts"]) as connection:
        if expose == "lan" and not given["only_plan"] and not given["sure"]:
            _ask_exposure(connection, options)
        with closing(ProgressDisplay(given["as_json"])) as display:
            outcome = deployment.deploy(connection, bundle, options, display, only_plan=given["only_plan"])
        _report(name, connection, outcome, given["only_plan"], given["as_json"])


def _settings(said: tuple[str, ...]) -> dict[str, Any] | None:
    """``temperature=0`` and the like; None where nothing is said. What they mean, the daemon knows."""
    if not said:
        return None
    found = {}
    for text in said:
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z_]*", key):
            raise UsageError(f"--set {text!r}: give a setting of the daemon and its value, as in temperature=0")
        if key in layout.OUR_SETTINGS:
            raise UsageError(f"--set {key}: that one is the deployment's own")
        if key in found:
            raise UsageError(f"--set {key} is given more than once: which value is meant?")
        try:
            read = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-13-45 looks like a date
            raise UsageError(f"--set {text!r}: the value is no YAML") from error
        if read is None:
            raise UsageError(f"--set {text!r}: give it a value, as in temperature=0")
        found[key] = read if isinstance(read, (bool, int, float, list)) else value
    _check_settings(found)
    return found


def _check_settings(found: dict[str, Any]) -> None:
    """UsageError for what the daemon would refuse, when all is on the board; it knows that itself, where it is here."""
    try:
        importlib.import_module("rkruntime.daemon.config").check_given(found)
    except ModuleNotFoundError as error:
        text = f"Note: --set is checked on the board only, for there is no {error.name} here"
        click.echo(f"{text}: pip install 'rk3588[daemon]'", err=True)
    context = found.get("context")
    if isinstance(context, int) and context > rkllm.MAX_CONTEXT and not found.get("beyond_board"):
        raise UsageError(
            f"--set context={context}: a board can use {rkllm.MAX_CONTEXT} tokens; give no more, or --set "
            "beyond_board=true as well (docs/rkchatd.md)"
        )


def _ask_exposure(connection: Connection, options: Options) -> None:
    """Once: a board that is open already is not asked about again."""
    facts, prefix = deployment.gather_facts(connection, options.prefix)
    state = deployment.read_state(connection, prefix, facts.systemd is not None)
    if deployment.Inspection(facts, prefix, state).manifest.get("listen") == layout.LAN:
        return
    question = "Everybody in the board's network who has a key will be able to chat, without TLS. Open it?"
    if not connecting.confirm(question):
        raise UsageError("not opened: say yes, give --yes, or leave --expose lan out")


def _report(name: str, connection: Connection, outcome: Outcome, only_plan: bool, as_json: bool) -> None:
    findings = [finding for finding in outcome.findings if finding.level in ("refuse", "warn")]
    for finding in findings:
        click.echo(printable(f"{finding.level}: {finding.text} → {finding.remedy}"), err=True)
    chosen = outcome.manifest
    if chosen and not as_json:
        where = "on its NPU" if chosen["runtime"] == runtimes.NPU else "simulated, its NPU is not used"
        text = f"{name}: {where}: {chosen['model_file']} with librkllmrt {chosen['runtime_version']}"
        click.echo(printable(text), err=True)
    if only_plan:
        steps = plan_as_json(outcome.plan)
        facts = {"host": name, "release": outcome.plan.release, "bytes": outcome.plan.bytes, "steps": steps}
        facts |= _chosen(outcome)
        click.echo(json.dumps([facts], indent=2) if as_json else describe_plan(outcome.plan))
        if judge.refusals(findings):
            raise DeployError("it would be refused: see above")
        if not as_json:
            click.echo(f"{len(steps)} commands, {outcome.plan.bytes / 1e6:.1f} MB to send.", err=True)
        return
    if as_json:
        result = {
            "host": name,
            "commands": outcome.done.commands,
            "bytes_sent": outcome.done.bytes_sent,
            "release": outcome.plan.release,
            "healthy": outcome.healthy,
            **_chosen(outcome),
        }
        click.echo(json.dumps([result], indent=2))
        return
    state = "deployed" if outcome.done.commands else "already as wanted"
    click.echo(printable(f"{name}: release {outcome.plan.release} {state}, it answered a chat.\n"), err=True)
    click.echo(printable(usage_text(connection, outcome)))


def _chosen(outcome: Outcome) -> dict[str, Any]:
    """Which runtime and which model; nothing where the board was refused before that was decided."""
    return {key: outcome.manifest[key] for key in ("runtime", "model_file") if key in outcome.manifest}


def usage_text(connection: Connection, outcome: Outcome) -> str:
    """How to use it now: URL, key, and what to enter in Open WebUI and Home Assistant."""
    inspection = outcome.inspection
    open_to_all, port = outcome.manifest["listen"] == layout.LAN, outcome.manifest["port"]
    address, words = connecting.how_to_reach(connection)
    here = address is None or inspection.facts.simulated  # the board's loopback is this machine's
    address = address or next(iter(inspection.facts.addresses), "127.0.0.1")
    host = address if open_to_all else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    read = f"{'sudo ' if inspection.systemd else ''}cat {inspection.prefix}/keys"
    lines = [f"URL            http://{host}:{port}/v1", f"chat page      http://{host}:{port}/   (it asks for the key)"]
    if not open_to_all and not here:
        tunnel = shell.command("ssh", "-NL", f"{port}:127.0.0.1:{port}", *words)
        lines.append(f"from here      {tunnel}   (or deploy with --expose lan)")
    container, elsewhere = "", ""
    if not open_to_all:
        container, elsewhere = "   (in a container: --network=host)", "   (where it runs elsewhere: --expose lan)"
    integration = "an integration for OpenAI's API (home-llm, say)"
    return "\n".join(
        [
            *lines,
            f"key            on the board: {read}   (what follows the colon)",
            f"Open WebUI     OPENAI_API_BASE_URL=http://{host}:{port}/v1 OPENAI_API_KEY=KEY{container}",
            f"Home Assistant {integration}: URL http://{host}:{port}/v1, API key KEY{elsewhere}",
            f"try            curl http://{host}:{port}/v1/models -H 'Authorization: Bearer KEY'",
        ]
    )


class ProgressDisplay(Watcher):
    """Progress on stderr: a line for what happens, and on a terminal a bar for what is sent, and the seconds."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._out = None if quiet else connecting.progress_stream()
        self._size = self._there = self._sent = 0  # bytes of a file, those that were on the board before, and now
        self._started = self._drawn = 0.0
        self._what = self._said = ""
        self._clock = ElapsedSeconds(self._out)

    def step(self, step: Step) -> None:
        self.close()
        if isinstance(step, Send):
            self._what, self._size, self._there, self._sent = printable(step.file.path), step.file.size, -1, 0
            self._started = time.monotonic()
            if not self._out and self._size >= _WORTH_A_LINE:
                self._say(f"sending {self._what}, {self._size / 1e6:.1f} MB")
        elif not isinstance(step, Activate):
            self._say(printable(step.why))
            self._clock.start()

    def sent(self, size: int) -> None:
        self._sent += size
        if self._there < 0:
            self._there = size
        now = time.monotonic()
        if not self._out or now - max(self._started, self._drawn) < 0.2:  # small files come and go unseen
            return
        self._drawn = now
        rate = (self._sent - self._there) / (now - self._started)
        left = (self._size - self._sent) / max(rate, 1.0)
        percent = 100 * self._sent // max(self._size, 1)
        name = textwrap.shorten(self._what, 40, placeholder="…")
        end = f" {percent:3d} %  {rate / 1e6:.1f} MB/s  {int(left) // 60}:{int(left) % 60:02d} left"
        self._out.write(f"\r\x1b[K{fitting(name, end, self._out)}")
        self._out.flush()

    def event(self, what: str) -> None:
        self.close()
        self._say(_EVENTS.get(what, printable(what)))
        self._clock.start()

    def _say(self, text: str) -> None:
        if not self._quiet and text != self._said:  # one line for ten files that are there already
            click.echo(text, err=True)
        self._said = text

    def close(self) -> None:
        self._clock.stop()
        if self._out and self._drawn:
            self._out.write("\r\x1b[K")
            self._out.flush()
        self._drawn = 0.0
