"""The daemon's HTTP side: routes, keys, request ids, errors in the client's language, one log line for each request."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Union

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rk3588 import bundle as bundles
from rk3588 import library_version, runtime
from rk3588.errors import RequestRefused, RkError
from rkruntime import loader

from . import logs, sampling, stats, web
from .answering import Answering, ClientGone, read_body
from .api import embeddings, languages, ollama_models, openapi, tokenize
from .api.dialect import Object
from .api.ollama_requests import WITHOUT_EFFECT
from .config import Config
from .embed_answering import EmbedAnswering
from .fields import Fields, parse_json
from .figures import Figures
from .gate import Gate, add_headers
from .jobs import Engine
from .jsonformat import Checker
from .keys import Keys, shown_in
from .models import Models
from .places import Places
from .template_facts import TemplateFacts
from .thinkwish import OF_THE_TEMPLATE
from .withoutpaths import without_paths, without_paths_in

_CLIENTS = 1000  # that are remembered
_OFTEN = ("/health", "/ready", "/stats", "/metrics")  # asked for by machines: no line for each that goes well
_OF_THE_DAEMON = {"num_ctx", "keep_alive", "store"}  # of what may be ignored
_NOT_CHANGED = "a request does not change this: the model stays loaded as it is, and nothing of it is kept"
_NOT_ANYWHERE = "no runtime here has such a setting: leave it out, or refuse such requests with --strict"
_NOT_IN_TEMPLATE = (
    "the model's chat template has no switch for thinking, or no place for tools, or a format of calls that is not "
    "known: choose another model or --template, or refuse such requests with --strict"
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def make(engine: Engine, config: Config) -> Starlette:
    """The application over an engine. Raises BundleError, LibraryError, and UsageError for a bad file of keys."""
    bundle = bundles.read(config.bundle)
    choice = runtime.choose(bundle, config.model.library)
    kind, release = choice.kind, library_version.version_of(choice.library)
    config = replace(
        config,
        sampling=config.model.sampling(bundle.sampling),
        template_facts=TemplateFacts.of_bundle(bundle, config.model),
        runtime_version=release.version,
        per_run_sampling=loader.TABLES[release.family].features.per_run_sampling,
    )
    created = int((bundle.path / bundles.MANIFEST).stat().st_mtime)
    models = Models(config.name or bundle.name, bundle.dtype, list(runtime.loras_for(bundle, kind)), created, kind)
    keys = Keys(config.keys)
    authorise = partial(_authorise, keys)

    async def fields_of(request: Request) -> Fields:
        return Fields(parse_json(await read_body(request.headers, request.receive, config.max_body_kb << 10)))

    figures, places = Figures(), Places()
    catalogue = ollama_models.Catalogue(bundle, config, models, engine, kind)
    routes = [
        *_answering(engine, config, keys, models, figures, places, bool(bundle.basis)),
        *web.routes(),
        *tokenize.routes(engine, config, models.find, authorise, fields_of),
        *ollama_models.routes(catalogue, models, authorise, fields_of),
        *stats.routes(stats.Stats(engine, config, bundle, choice, figures, places.of), authorise, keys),
        *_telling(engine, config, keys, models, authorise),
        Route("/openapi.json", _describe),
    ]
    figures.paths = frozenset(route.path for route in routes if "{" not in route.path)
    middleware = [Middleware(_Logged, config=config, figures=figures), Middleware(Gate, config=config)]

    async def rk_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RkError)
        failure = languages.failure_at(request.url.path)(error)
        request.state.facts["error"] = failure.code
        body = failure.body
        if failure.status >= 500 and not keys.known(shown_in(request.headers)):
            body = without_paths_in(body, config)
        return JSONResponse(body, failure.status, failure.headers)

    handlers: Any = {RkError: rk_error, HTTPException: _http_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def _answering(
    engine: Engine, config: Config, keys: Keys, models: Models, figures: Figures, places: Places, rotated: bool
) -> list[Route]:
    """What is answered by the model, in every language."""
    checker = Checker()  # one for all: its bounds are the daemon's
    answers: list[Union[Answering, EmbedAnswering]] = [
        *(Answering(engine, config, keys, models.find, each, figures, places, checker) for each in languages.ENDPOINTS),
        *(EmbedAnswering(engine, config, keys, models.find, each, rotated) for each in embeddings.ENDPOINTS),
    ]
    return [Route(each.path, each, methods=["POST"]) for each in answers]


def _telling(
    engine: Engine, config: Config, keys: Keys, models: Models, authorise: Callable[[Request], None]
) -> list[Route]:
    """Which models there are, and how things stand."""

    async def list_models(request: Request) -> Response:
        authorise(request)
        entries = [models.entry(model, engine.status.context) for model in models.all.values()]
        return JSONResponse({"object": "list", "data": entries})

    async def one_model(request: Request) -> Response:
        authorise(request)
        return JSONResponse(models.entry(models.find(request.path_params["id"]), engine.status.context))

    def status(request: Request) -> Object:
        found = _status(engine)
        if "reason" in found and not keys.known(shown_in(request.headers)):
            found["reason"] = without_paths(found["reason"], config)
        return found

    async def health(request: Request) -> Response:
        return JSONResponse(status(request), 200 if engine.status.state in ("loading", "ready") else 503)

    async def ready(request: Request) -> Response:
        return JSONResponse(status(request), 200 if engine.status.state == "ready" else 503)

    return [
        Route("/v1/models", list_models),
        Route("/v1/models/{id:path}", one_model),
        Route("/health", health),
        Route("/ready", ready),
    ]


def _authorise(keys: Keys, request: Request) -> None:
    request.state.facts["key"] = keys.owner(shown_in(request.headers)) or None


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
    return JSONResponse(languages.failure_at(request.url.path)(refused).body, error.status_code, error.headers)


class _Logged:
    """Around everything: a request id in and out, a log line at the end, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, config: Config, figures: Figures) -> None:
        self._app, self._config, self._figures = app, config, figures
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
            facts.update(ended="unexpected error", error="internal_error")
            if not status:
                unexpected = RkError("an unexpected error: the daemon's log has more under this id")
                failure = languages.failure_at(scope["path"])(unexpected)
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
        named = ignored.split(", ")
        template = [name for name in named if name.partition(".")[0] in OF_THE_TEMPLATE]
        daemon = [name for name in named if name in _OF_THE_DAEMON]
        nowhere = [name for name in named if name in WITHOUT_EFFECT]
        others = [name for name in named if name not in (*template, *daemon, *nowhere)]
        fixed = (
            f"{sampling.why_ignored(self._config)}: choose it with the daemon's own settings (--temperature and the "
            "like), or refuse such requests with --strict"
        )
        reasons = (
            (template, _NOT_IN_TEMPLATE), (daemon, _NOT_CHANGED), (nowhere, _NOT_ANYWHERE), (others, fixed),
        )  # fmt: skip
        for names, reason in reasons:
            if names:
                event = "sampling ignored" if names is others else "ignored"
                logs.event(event, logging.WARNING, client=client, ignored=", ".join(names), reason=reason)
