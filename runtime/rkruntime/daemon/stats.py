"""``/stats`` and ``/metrics``: how the daemon and its board are, for the chat page and for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Optional

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import rk3588
from rk3588 import runtime
from rk3588.bundle import Bundle
from rk3588.errors import LibraryError

from . import board, logs, metrics
from .board import Readings
from .config import Config
from .figures import Figures
from .jobs import Engine
from .keys import Keys, shown_in
from .withoutpaths import without_paths

_FRESH_S = 0.8  # readings are shared by those who ask within this time
_Facts = dict[str, Any]


class Stats:
    """What is served, on what, and how it goes. ``find_place`` tells a request's place in the queue by its id."""

    def __init__(
        self,
        engine: Engine,
        config: Config,
        bundle: Bundle,
        choice: runtime.Choice,
        figures: Figures,
        find_place: Callable[[str], Optional[int]],
    ) -> None:
        self._engine, self._config, self._bundle, self._choice = engine, config, bundle, choice
        self._figures, self._find_place = figures, find_place
        self._about: Optional[_Facts] = None
        self._readings, self._read_at = Readings(), -1e9
        self._reading: Optional[asyncio.Future[Readings]] = None

    async def stats(self, request: Request, known: bool) -> Response:
        """``known``: whether a key was shown; whoever shows none is told no paths."""
        about, readings = await self._now()
        status = self._engine.status
        reason = status.reason if known else without_paths(status.reason, self._config)
        found: _Facts = {
            **about, "state": status.state, "reason": reason, "context": status.context,
            "queued": status.queued, "queue_length": self._engine.settings.queue_length, "running": status.running,
            "restarts": status.restarts, "uptime_s": round(self._figures.uptime_s),
            "refusals": dict(self._figures.refusals), "measured": self._measured(), "now": readings.facts(),
        }  # fmt: skip
        asked = request.query_params.get("request")
        if asked:
            found["place"] = self._find_place(asked)
        return JSONResponse(found, headers={"cache-control": "no-store"})

    async def metrics(self, _request: Request) -> Response:
        about, readings = await self._now()
        told: Mapping[str, str] = {
            "version": rk3588.__version__, "model": about["model"]["name"], "dtype": about["model"]["dtype"],
            "runtime": about["runtime"]["kind"], "runtime_version": about["runtime"]["version"] or "",
            "driver": about["runtime"]["driver"] or "", "board": about["board"]["name"] or "",
        }  # fmt: skip
        content, kind = metrics.text(self._figures, self._engine.status, told, readings)
        return Response(content, headers={"content-type": kind, "cache-control": "no-store"})

    def _measured(self) -> _Facts:
        figures = self._figures
        return {
            "answers": sum(figures.answers.values()), "prompt_tokens": figures.prompt_tokens,
            "completion_tokens": figures.completion_tokens, "decode_tok_s": figures.mean_decode,
            "prefill_tok_s": figures.mean_prefill,
        }  # fmt: skip

    async def _now(self) -> tuple[_Facts, Readings]:
        """What does not change, found out once, and readings that are fresh; in a thread, for files may be slow."""
        if self._reading is None and time.monotonic() - self._read_at > _FRESH_S:
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._read))
        if self._reading is not None:
            reading = self._reading
            try:
                self._readings = await asyncio.shield(reading)
                self._read_at = time.monotonic()
            finally:
                if self._reading is reading and reading.done():
                    self._reading = None
        assert self._about is not None
        return self._about, self._readings

    def _read(self) -> Readings:
        if self._about is None:
            self._about = self._find_out()
        return board.readings(worker=self._engine.worker_pid)

    def _find_out(self) -> _Facts:
        bundle, choice, found = self._bundle, self._choice, board.identify()
        try:
            version: Optional[str] = runtime.read(choice.library).version
        except LibraryError:  # for another machine, as a test's is
            version = None
        predicted = board.predicted(bundle, found, lambda said: logs.event("prediction", logging.INFO, reason=said))
        return {
            "version": rk3588.__version__,
            "model": {
                "name": self._config.name or bundle.name, "dtype": bundle.dtype, "file": choice.model.name,
                "bytes": choice.model.stat().st_size, "loras": list(runtime.loras_for(bundle, choice.kind)),
                "context_length": bundle.context_length, "params": board.params(bundle),
            },
            "runtime": {
                "kind": choice.kind, "simulated": choice.simulated, "version": version, "driver": board.driver(),
            },
            "board": {"name": found.name, "type": found.type},
            "sampling": self._config.sampling._asdict(),
            "predicted": predicted,
        }  # fmt: skip


def routes(stats: Stats, authorise: Callable[[Request], None], keys: Keys) -> list[Route]:
    async def show_stats(request: Request) -> Response:
        authorise(request)
        return await stats.stats(request, keys.known(shown_in(request.headers)))

    async def show_metrics(request: Request) -> Response:
        authorise(request)
        return await stats.metrics(request)

    return [Route("/stats", show_stats), Route("/metrics", show_metrics)]
