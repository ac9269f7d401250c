"""The daemon's settings: one dataclass, of whose fields come its file's keys, its command's options, and the docs.

How the model is run stands in a dataclass of its own, ``rkruntime.settings``, which `run` and `chat` share.
"""

# ruff: noqa: RUF009  # `setting` makes fields, as `dataclasses.field` does

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional

import click
import yaml

from rk3588 import yamltable
from rk3588.errors import BoardError, UsageError
from rk3588.sampling import DEFAULTS, Sampling
from rkruntime import settings
from rkruntime.settings import Number, Setting, Settings, Whole, group, setting, table_of

from . import hosts
from .jobs import EngineSettings
from .template_facts import TemplateFacts


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class _AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on
    name = "HOST:PORT"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Address:
        if isinstance(value, Address):
            return value
        host, _, port = str(value).rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not an address like 127.0.0.1:8080 or [::1]:8080", param, ctx)
        return Address(bare, int(port))


class _Origin(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "ORIGIN"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> str:
        text = str(value).strip()
        if text in ("*", "null", "file://"):  # the last two are what pages without a host call themselves
            return text
        text = text.rstrip("/")
        if hosts.origin(text) is None:
            self.fail(f"{value!r} is not an origin like https://chat.example.org (or `*` for any)", param, ctx)
        return text


class _Host(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "NAME"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> str:
        text = str(value).strip()
        if not hosts.is_name_or_pattern(text):
            what = "a host's name without a port, like chat.example.org or *.example.org"
            self.fail(f"{value!r} is not {what}", param, ctx)
        return text


_PATH = click.Path(path_type=Path)
_POSITIVE = Number(0, min_open=True)


@dataclass(frozen=True)
class Config:
    """All of the daemon's settings, checked; those with a default elsewhere have it in ``EngineSettings``."""

    bundle: Path = setting(_PATH, None, "The bundle to serve; needed.")
    listen: Address = setting(_AddressType(), Address("127.0.0.1", 8080), "Where to listen; port 0 takes a free one.")
    ollama_listen: Optional[Address] = setting(
        _AddressType(), None, "A second address, such as 127.0.0.1:11434, where clients of Ollama look."
    )
    keys: Optional[Path] = setting(
        _PATH, None, "File of API keys, a `NAME:KEY` or a `KEY` on each line. Without it, any key will do."
    )
    insecure: bool = setting(click.BOOL, False, "Allow an address beyond this machine without keys.")
    cors: tuple[str, ...] = setting(
        _Origin(), (), "Origins whose web pages may call, or `*`; several in a list.", is_list=True
    )
    allowed_hosts: tuple[str, ...] = setting(
        _Host(), (), "More names to reach it by: `NAME`, `*.NAME`; several in a list.", is_list=True
    )
    name: Optional[str] = setting(click.STRING, None, "What the model is called [the bundle's name].")
    sim_library: Optional[Path] = setting(_PATH, None, "The librksim.so that counts tokens [the packaged one].")
    model: Settings = group(Settings)
    strict: bool = setting(
        click.BOOL,
        False,
        "Refuse requests for what has no effect, as other sampling, instead of naming it in x-rk-ignored.",
    )
    queue_length: int = setting(Whole(0, 10000), EngineSettings.queue_length, "Requests that may wait; more get 429.")
    deadline_s: float = setting(
        _POSITIVE, EngineSettings.deadline_s, "Seconds from a request's arrival to its last token."
    )
    patience: float = setting(
        _POSITIVE, EngineSettings.patience, "Multiplies every deadline of the worker; a slower machine wants more."
    )
    keep_alive_s: float = setting(_POSITIVE, 5.0, "Seconds of silence after which a stream gets a sign of life.")
    sse_comments: bool = setting(click.BOOL, False, "Send signs of life as SSE comments; some clients break on those.")
    drain_s: float = setting(Number(0), 30.0, "Seconds that answers under way get when the daemon is told to end.")
    max_body_kb: int = setting(Whole(1, 1 << 20), 4096, "Largest request, in KiB.")
    max_bodies_kb: int = setting(Whole(1), 65536, "Most that the requests under way may hold together, in KiB.")
    body_s: float = setting(_POSITIVE, 60.0, "Seconds within which the body of a request has to come.")
    header_s: float = setting(_POSITIVE, 10.0, "Seconds within which the head of a request has to come.")
    send_s: float = setting(
        _POSITIVE, 30.0, "Seconds after which a client that reads nothing of its answer is dropped."
    )
    max_connections: int = setting(Whole(1, 100_000), 512, "Most connections; for one more, the idlest is closed.")
    max_messages: int = setting(Whole(1), 1024, "Most messages of a conversation.")
    state_dir: Optional[Path] = setting(_PATH, None, "Where failed loads are remembered [in memory only].")
    log: str = setting(click.Choice(["debug", "info", "warning", "error"]), "info", "How much is logged.")
    sampling: Sampling = DEFAULTS  # what the model is loaded with: of ``model`` and the bundle
    runtime_version: str = ""  # of the librkllmrt that is used
    per_run_sampling: bool = False  # it takes sampling with each run
    template_facts: TemplateFacts = TemplateFacts()  # of the template that is used

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens."""
        return (self.listen,) if self.ollama_listen is None else (self.listen, self.ollama_listen)

    def engine(self) -> EngineSettings:
        """The part of it that the engine is given."""
        return EngineSettings(**{each.name: getattr(self, each.name) for each in fields(EngineSettings)})


OPTIONS = table_of(Config)


def command_options(*leave_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: every option but those left out; what was not given arrives as None, or () for a list."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([o for o in OPTIONS if o.name not in leave_out]):
            if option.kind is click.BOOL:
                off = option.flag.replace("--", "--no-", 1)
                add = click.option(f"{option.flag}/{off}", option.name, default=None, help=option.help)
            else:
                add = click.option(
                    option.flag, option.name, type=option.kind, multiple=option.is_list, help=_help(option)
                )
            command = add(command)
        return command

    return decorate


def make(file: Optional[Path], given: Mapping[str, Any]) -> Config:
    """What stands in ``file``, under what was given on the command line; UsageError says which value is wrong."""
    values = {option.name: option.default for option in OPTIONS}
    if file is not None:
        values.update(_from_file(file))
    values.update({name: value for name, value in given.items() if value is not None and value != ()})
    if values["bundle"] is None:
        raise UsageError("which bundle? Give --bundle FOLDER, or `bundle: FOLDER` in the file of --config")
    others = {name: value for name, value in values.items() if name not in settings.BY_NAME}
    config = Config(model=Settings.of(values), **others)
    if config.ollama_listen == config.listen and config.listen.port:
        raise UsageError(f"listen and ollama_listen are both {config.listen}: leave ollama_listen out, or change one")
    if config.state_dir and config.state_dir.exists() and not config.state_dir.is_dir():
        raise UsageError(f"state_dir: {config.state_dir} is no folder: give one, which need not exist yet")
    open_to_others = next((address for address in config.addresses if not address.is_loopback), None)
    if open_to_others and not (config.keys or config.insecure):
        raise UsageError(
            f"{open_to_others} can be reached from other machines, and there is no file of API keys: give --keys FILE, "
            "or --insecure if everybody there may use the model"
        )
    return config


def _help(option: Setting) -> str:
    return option.help + (f" [{option.default}]" if option.default not in (None, ()) else "")


def _from_file(file: Path) -> dict[str, Any]:
    """Values by key. Paths are relative to the file's folder."""
    try:
        _, table = yamltable.read(file, "`key: value` lines")
        table.only(option.name for option in OPTIONS)
        found = {option.name: _value(table, option) for option in OPTIONS if table.node_of(option.name) is not None}
    except BoardError as error:
        raise UsageError(str(error)) from error
    return {key: file.parent / value if isinstance(value, Path) else value for key, value in found.items()}


class _Given(yamltable.Table):
    """Settings that stand in no file yet: what is wrong with one has no line."""

    def fail(self, node: Optional[yaml.Node], message: str) -> NoReturn:  # noqa: ARG002
        raise UsageError(f"--set: {message}")


def check_given(given: Mapping[str, Any]) -> None:
    """UsageError for what this table would refuse in a file; for deployments, which write it only on the board."""
    read = yamltable.parse(yaml.safe_dump(dict(given)), Path("--set"))
    table = _Given(read.file, read.node, "the daemon's settings").only(option.name for option in OPTIONS)
    Settings.of({option.name: _value(table, option) for option in OPTIONS if option.name in given})


def _value(table: yamltable.Table, option: Setting) -> Any:
    node = table.need(option.name)
    if option.is_list:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(_scalar(table, each, option) for each in nodes)
    return _scalar(table, node, option)


def _scalar(table: yamltable.Table, node: yaml.Node, option: Setting) -> Any:
    if not isinstance(node, yaml.ScalarNode) or not str(node.value).strip():
        table.fail(node, f"{option.name!r} has to have one value")
    try:
        return option.kind.convert(str(node.value), None, None)
    except click.BadParameter as error:
        table.fail(node, f"{option.name!r}: {settings.complaint(option.kind, error)}")
