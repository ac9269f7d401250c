"""The daemon's HTTP side: routes, keys, request ids, errors in OpenAI's shape, one log line for each request."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rk3588 import bundle as bundles
from rk3588 import runtime
from rk3588.errors import RequestRefused, RkError

from . import logs, stats, web
from .answering import Answering, ClientGone
from .api import openai, openapi
from .api.dialect import Object
from .config import Config
from .figures import Figures
from .gate import Gate, add_headers
from .jobs import Engine
from .keys import Keys
from .models import Models
from .places import Places

_CLIENTS = 1000  # that are remembered
_OFTEN = ("/health", "/ready", "/stats", "/metrics")  # asked for by machines: no line for each that goes well
_PATH = re.compile(r"(?<![\w/:])(?:~|\.{1,2})?/(?!/)[^\s'\"`,;()<>]*|(?<=:)/(?!/)[^\s'\"`,;()<>]*")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def make(engine: Engine, config: Config) -> Starlette:
    """The application over an engine. Raises BundleError, LibraryError, and UsageError for a bad file of keys."""
    bundle = bundles.read(config.bundle)
    config = replace(config, sampling=config.model.sampling(bundle.sampling))
    choice = runtime.choose(bundle, config.model.library)
    created = int((bundle.path / bundles.MANIFEST).stat().st_mtime)
    models = Models(config.name or bundle.name, list(runtime.loras_for(bundle, choice.kind)), created, choice.kind)
    keys = Keys(config.keys)

    async def list_models(request: Request) -> Response:
        _authorise(request, keys)
        entries = [models.entry(model, engine.status.context) for model in models.all.values()]
        return JSONResponse({"object": "list", "data": entries})

    async def one_model(request: Request) -> Response:
        _authorise(request, keys)
        return JSONResponse(models.entry(models.find(request.path_params["id"]), engine.status.context))

    def status(request: Request) -> Object:
        found = _status(engine)
        if "reason" in found and not keys.known(request.headers.get("authorization")):
            found["reason"] = without_paths(found["reason"], config)
        return found

    async def health(request: Request) -> Response:
        return JSONResponse(status(request), 200 if engine.status.state in ("loading", "ready") else 503)

    async def ready(request: Request) -> Response:
        return JSONResponse(status(request), 200 if engine.status.state == "ready" else 503)

    figures, places = Figures(), Places()
    answering = [
        Route(endpoint.path, Answering(engine, config, keys, models.find, endpoint, figures, places), methods=["POST"])
        for endpoint in openai.ENDPOINTS
    ]
    routes = [
        *answering,
        *web.routes(),
        *stats.routes(stats.Stats(engine, config, bundle, choice, figures, places.of), partial(_authorise, keys=keys)),
        Route("/v1/models", list_models),
        Route("/v1/models/{id:path}", one_model),
        Route("/health", health),
        Route("/ready", ready),
        Route("/openapi.json", _describe),
        Route("/", web.plain),
    ]
    figures.paths = frozenset(route.path for route in routes if "{" not in route.path)
    middleware = [Middleware(_Logged, figures=figures), Middleware(Gate, config=config)]

    async def rk_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RkError)
        failure = openai.failure(error)
        request.state.facts["error"] = failure.code
        told = failure.body["error"]
        if failure.status >= 500 and not keys.known(request.headers.get("authorization")):
            told["message"] = without_paths(told["message"], config)
        return JSONResponse(failure.body, failure.status, failure.headers)

    handlers: Any = {RkError: rk_error, HTTPException: _http_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _authorise(request: Request, keys: Keys) -> None:
    request.state.facts["key"] = keys.owner(request.headers.get("authorization")) or None


def _status(engine: Engine) -> Object:
    status = engine.status
    found: Object = {"state": status.state, "queued": status.queued, "running": status.running}
    found["restarts"] = status.restarts
    if status.reason:
        found["reason"] = status.reason
    if status.context:
        found["context"] = status.context
    return found


async def _describe(_request: Request) -> Response:
    return Response(openapi.document(), media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:100]}: {error.detail.lower()}; GET /openapi.json says what there is"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    refused = RequestRefused(message, status=error.status_code, code=code)
    return JSONResponse(openai.failure(refused).body, error.status_code, error.headers)


class _Logged:
    """Around everything: a request id in and out, a log line at the end, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app, self._figures = app, figures
        self._warned: dict[tuple[str, str], None] = {}  # which client, of what: the newest last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {"request_id": request_id}
        scope.setdefault("state", {})["facts"] = facts
        began, status, ignored = time.monotonic(), 0, ""

        async def send_with_id(message: Message) -> None:
            nonlocal status, ignored
            if message["type"] == "http.response.start":
                status = message["status"]
                add_headers(message, scope)
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = request_id
                ignored = headers.get("x-rk-ignored", "")
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            facts.setdefault("ended", "client gone")
        except Exception:
            logs.event("unexpected error", logging.ERROR, exc_info=True, request_id=request_id)
            facts["ended"] = "unexpected error"
            if not status:
                failure = openai.failure(RkError("an unexpected error: the daemon's log has more under this id"))
                await JSONResponse(failure.body, failure.status)(scope, receive, send_with_id)
        finally:
            if ignored:
                self._warn_once(scope, ignored)
            self._figures.add_request(scope["path"], status, facts)
            quiet = (scope["path"] in _OFTEN or web.is_page(scope["path"])) and status in (200, 304)
            logs.event(
                "request",
                logging.DEBUG if quiet else logging.INFO,
                method=scope["method"],
                path=scope["path"][:200],
                status=status or None,
                seconds=round(time.monotonic() - began, 4),
                **facts,
            )
        return None

    def _warn_once(self, scope: Scope, ignored: str) -> None:
        """Once for each client and what it asks for: most programs show nobody the header that says it."""
        facts = scope["state"]["facts"]
        address = scope["client"][0] if scope.get("client") else ""
        program = Headers(scope=scope).get("user-agent", "")[:100]
        client = facts.get("key") or f"{address} {program}".strip()
        if (client, ignored) in self._warned:
            return
        while len(self._warned) >= _CLIENTS:
            del self._warned[next(iter(self._warned))]
        self._warned[client, ignored] = None
        logs.event(
            "sampling ignored",
            logging.WARNING,
            client=client,
            ignored=ignored,
            reason="librkllmrt 1.1 fixes sampling when it loads a model: choose it with the daemon's own settings "
            "(--temperature and the like), or refuse such requests with --strict",
        )


def without_paths(text: str, config: Config) -> str:
    """``text`` with the last parts of paths only: for those who have shown no key, who need not know this machine."""
    given = (config.bundle, config.model.library, config.sim_library, config.state_dir, config.keys)
    known = {path for one in given if one is not None for path in (one, one.absolute(), one.resolve())}
    for path in sorted(known, key=lambda path: -len(str(path))):
        if len(path.parts) > 1:
            text = text.replace(str(path), path.name)
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)
