"""``rk3588 bench``: how fast a model answers, in llama-bench's terms, wherever it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import click

from rk3588.bench import completions, plan, results, serving, tables
from rk3588.bench.events import Emit
from rk3588.bench.plan import Plan
from rk3588.bench.results import Report
from rk3588.commands import connecting, inventories
from rk3588.errors import ConnectError, RkError, UsageError, printable

BUNDLE, HOST, URL = "a bundle", "a board", "a URL"
_FOR = {
    "library": (BUNDLE,), "context": (BUNDLE,), "threads": (BUNDLE,), "lora": (BUNDLE,), "model": (URL,), "key": (URL,),
    "concurrency": (URL, HOST), "accept_new": (HOST,), "ssh_config": (HOST,), "hosts": (HOST,), "prefix": (HOST,),
}  # fmt: skip


@click.command()
@click.argument("target", metavar="BUNDLE|HOST|URL")
@click.option("-p", "--n-prompt", default="512", show_default=True, metavar="N,…", help="Tokens of prompts; 0: none.")
@click.option("-n", "--n-gen", default="128", show_default=True, metavar="N,…", help="Tokens of answers; 0: none.")
@click.option(
    "-r", "--repetitions", default=5, show_default=True, type=click.IntRange(1, plan.MOST_REPETITIONS), metavar="N",
    help="Of each test, after a warm-up.",
)
@click.option(
    "--ttft", default=plan.TTFT_TOKENS, show_default=True, type=click.IntRange(0, plan.MOST_TOKENS), metavar="N",
    help="Time to the first token after a prompt of N tokens; 0: none.",
)
@click.option("--concurrency", metavar="N,…", help="Then so many clients at once, say 1,2,4,8 (not with a bundle).")
@click.option(
    "-o", "--output", type=click.Choice(tables.FORMATS), default="md", show_default=True, help="On stdout."
)
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Keep the results, as JSON.")
@click.option("--against", type=click.Path(path_type=Path), metavar="FILE", help="Compare with what --save has kept.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw them (.png, .svg).")
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(0.1, 86_400), metavar="S",
    help="Seconds that one answer may take.",
)
@click.option("-t", "--threads", type=click.IntRange(1, 256), metavar="N", help="Of the simulated runtime [all cores].")
@click.option("-c", "--context", type=click.IntRange(0), metavar="N", help="Of context [the model's, at most 4096].")
@click.option("--library", metavar="FILE|sim", help="The librkllmrt.so to use, as `rk3588 run` takes it.")
@click.option("--lora", metavar="FILE[:NAME[:SCALE]]", help="With an adapter, as `rk3588 run` takes it.")
@click.option("--model", metavar="NAME", help="Which of a server's models [the first that it lists].")
@click.option("--key", envvar="RK3588_KEY", show_envvar=True, help="API key of a server behind a URL.")
@connecting.connection_options
def bench(
    target: str,
    output: str,
    save: Optional[Path],
    against: Optional[Path],
    plot: Optional[Path],
    **given: Any,
) -> None:
    """Measure a model, as llama-bench does: pp512 is the speed of a prompt of 512 tokens, tg128 that of 128 tokens of
    answer, each with its standard deviation. Then the time to the first token (TTFT), model size and memory, clocks and
    temperatures before and after, and what `rk3588 predict` says.

    \b
    rk3588 bench out/NAME-rk3588-w8a8             # a bundle, over the library that `rk3588 run` would take
    rk3588 bench kitchen                          # the daemon deployed to a board, asked there
    rk3588 bench http://127.0.0.1:8080            # any server of OpenAI's API, as a client sees it
    rk3588 bench kitchen -r 10 --save before.json; …; rk3588 bench kitchen -r 10 --against before.json

    Prompts are random words, never the same twice. Nothing keeps a model from ending its answer: then a test goes on
    with another prompt until it has its tokens. Ctrl-C prints and saves what was measured so far.
    """
    kind = _kind(target)
    for name, kinds in _FOR.items():
        source = click.get_current_context().get_parameter_source(name)
        if kind not in kinds and source is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(_not_for(name, kind, target))
    wanted = plan.make(
        given["n_prompt"], given["n_gen"], given["ttft"], given["repetitions"], given["concurrency"] or "",
        given["timeout"],
    )  # fmt: skip
    before = results.read(against) if against else None
    if save is not None:
        results.check_place(save)
    if plot is not None:
        from rk3588 import plot as drawing

        drawing.check(plot)
        if not wanted.tests:
            raise UsageError(f"--plot {plot}: several clients are not drawn, and there is no other test: give -p or -n")
    report = Report.begin(target)
    try:
        with _Progress(report) as emit:
            _MEASURES[kind](target, wanted, given, emit)
    except KeyboardInterrupt:
        report.interrupted = True
        raise
    except RkError:
        report.interrupted = True
        raise
    finally:
        if not report.empty:
            _hand_out(report, output, save, before, plot)


def _hand_out(
    report: Report, output: str, save: Optional[Path], before: Optional[Report], plot: Optional[Path]
) -> None:
    for note in _notes(report):
        click.echo(printable(note), err=True)
    click.echo(tables.render(report, output, before))
    if save is not None:
        report.save(save)
        click.echo(printable(f"saved {save}"), err=True)
    if plot is not None:
        from rk3588.bench import figure

        figure.draw(plot, report, before)
        click.echo(printable(f"drew {plot}"), err=True)


def _notes(report: Report) -> list[str]:
    found = [*report.notes]
    for row in report.rows:
        answers = sum(sample.answers for sample in row.samples)
        short = min(sample.tokens for sample in row.samples)
        if row.kind == "tg" and answers > len(row.samples):
            more = f", and still had {short} tokens in one" if short < row.n_gen else ""
            told = f"the model ended answers early; {len(row.samples)} repetitions took {answers} of them{more}"
            found.append(f"{row.test}: {told}")
    for each in report.clients:
        if each["failed"]:
            failed = f"{each['failed']} of {each['failed'] + each['requests']} requests failed"
            found.append(f"{each['clients']} clients: {failed}: {each['why']}")
    if report.interrupted:
        found.append("this is not all: the measurement did not get to its end")
    return found


def _kind(target: str) -> str:
    if not target:
        raise UsageError("what to measure is empty: give a bundle, a board or a server's URL")
    if "://" in target:
        return URL
    path = Path(target)
    if path.is_dir() and target == path.name and _is_board(target):
        raise UsageError(f"{target} is a folder here and a board: write ./{target} for the folder, or rename one")
    return BUNDLE if path.exists() or "/" in target else HOST


def _is_board(name: str) -> bool:
    from rk3588 import boards, simboard

    return simboard.find(name) is not None or name in boards.load(None).hosts


def _not_for(name: str, kind: str, target: str) -> str:
    option = f"--{name.replace('_', '-')}"
    if name == "concurrency":
        return f"{option}: {target} is a bundle, which answers one at a time: serve it, and give that URL"
    return f"{option} is for {' or '.join(_FOR[name])}, and {target} is {kind}: leave it out"


def _measure_bundle(target: str, wanted: Plan, given: dict[str, Any], emit: Emit) -> None:
    from rk3588 import bundle, runtime
    from rkruntime import benching

    # What is no bundle, or no library for it, is told before a process is started.
    library = Path(given["library"]) if given["library"] else None
    choice = runtime.choose(bundle.read(Path(target)), library)
    if given["threads"] and not choice.simulated:
        raise UsageError(f"--threads is for the simulated runtime, and this runs {choice}: leave it out")
    asked = {
        "bundle": str(Path(target).absolute()), "library": given["library"], "context": given["context"] or 0,
        "lora": given["lora"], "plan": wanted.frame(),
    }  # fmt: skip
    benching.measure(asked, given["threads"], wanted.seconds, emit)


def _measure_board(target: str, wanted: Plan, given: dict[str, Any], emit: Emit) -> None:
    reach = (given["accept_new"], given["ssh_config"], given["hosts"])
    try:
        opened = connecting.open_connection(target, *reach)
    except ConnectError as error:
        if "@" in target or ":" not in target:
            raise
        raise ConnectError(f"{error}; for a server's own URL write http://{target}") from error
    with opened as connection:
        from rk3588.deploy import measuring

        known = inventories.load(given["hosts"])
        kind = known.board(target) if target in known.hosts else None
        measuring.measure(connection, given["prefix"], wanted, emit, kind)


def _measure_server(target: str, wanted: Plan, given: dict[str, Any], emit: Emit) -> None:
    server = completions.Server(target, given["key"], wanted.seconds)
    serving.measure(server, given["model"], wanted, emit)


_MEASURES: dict[str, Callable[[str, Plan, dict[str, Any], Emit], None]] = {
    BUNDLE: _measure_bundle, HOST: _measure_board, URL: _measure_server,
}  # fmt: skip


class _Progress:
    """Events into the report, and on a terminal a line that says what goes on."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._out = sys.stderr if sys.stderr.isatty() else None

    def __enter__(self) -> Emit:
        return self._take

    def __exit__(self, *_: object) -> None:
        self._draw("")

    def _take(self, event: dict[str, Any]) -> None:
        if "progress" in event:
            self._draw(printable(str(event["progress"])[:70]))
        else:
            self._report.take(event)

    def _draw(self, text: str) -> None:
        if self._out is not None:
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()
