"""The gate before every route: what a web page may ask, by which name, with what kind of body, and how large in all.

A browser lets any page send requests to this machine; which page it was stands in ``Origin``, by which name it came in
``Host``. Programs send no Origin and are not concerned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Optional

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rk3588.errors import QueueFull, RequestRefused, RkError

from . import hosts, web
from .api import languages
from .config import Config

_EXPOSED = "x-request-id, x-rk-ignored, retry-after"
_METHODS = "GET, POST"
_PREFLIGHT_S = 600  # that a browser may remember the answer to a preflight
_RETRY_S = 5
_NETWORK = ("private-network", "local-network")  # a page of the internet asks to reach this machine; two drafts' names


class Gate:
    """Refuses with 4xx, or passes on; what CORS wants in an answer goes into ``state["headers"]``."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app, self._config = app, config
        self._names = hosts.Names((*config.allowed_hosts, *(address.host for address in config.addresses)))
        self._any_page = "*" in config.cors
        self._pages = {hosts.origin(page) or page.strip().lower() for page in config.cors}
        # A name in the network may be any where a key is needed: a page that has its own lead here has none.
        self._guards_names = config.keys is None or any(address.is_loopback for address in config.addresses)
        self._most_bytes = max(config.max_bodies_kb, config.max_body_kb) << 10
        self._bytes = 0  # of bodies of requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scope["state"]["headers"] = more = {"vary": "Origin"}
        try:
            scope = self._with_path(scope)
            self._check_names(scope, headers)
            welcome = self._check_page(scope, headers)
            if welcome:
                more["access-control-allow-origin"] = "*" if self._any_page else headers["origin"]
                more["access-control-expose-headers"] = _EXPOSED
            _check_body(headers, "origin" in headers)
        except RequestRefused as error:
            failure = languages.failure_at(scope["path"])(error)
            scope["state"]["facts"]["error"] = failure.code
            extra = {405: {"allow": f"{_METHODS}, OPTIONS"}, 415: {"accept-encoding": "identity"}}.get(error.status)
            return await JSONResponse(failure.body, failure.status, extra)(scope, receive, send)
        if welcome and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return await _preflight(headers)(scope, receive, send)
        return await self._with_bounded_bodies(scope, receive, send)

    def _with_path(self, scope: Scope) -> Scope:
        """The scope with the path that is meant: of `GET http://host/path`, which proxies are sent, its own part."""
        method, uri = scope["method"], scope["raw_path"].decode("latin-1")
        if method == "CONNECT":
            raise RequestRefused("CONNECT: this server is no proxy", status=405, code="method_not_allowed")
        if uri.startswith("/") or uri == "*":
            return scope
        scheme, _, rest = uri.partition("://")
        authority, slash, _ = rest.partition("/")
        named = hosts.place(authority)
        if scheme.lower() != "http" or named is None or not scope["path"].lower().startswith("http://"):
            what = "a path like /v1/models, or an address that begins with http://"
            raise RequestRefused(f"the target of a request has to be {what}: this server is no proxy")
        scope["state"]["named"] = named
        path = slash + scope["path"][len("http://") :].partition("/")[2] or "/"
        raw = ("/" + rest.partition("/")[2]).encode("latin-1")
        return {**scope, "path": path, "raw_path": raw}

    def _check_names(self, scope: Scope, headers: Headers) -> None:
        """403 where a request is for another name than this machine's."""
        if not self._guards_names:
            return
        places = [hosts.place(value) for value in headers.getlist("host") if value.strip()]
        if "named" in scope["state"]:
            places.append(scope["state"]["named"])
        for given in places:
            if given is None or not self._names.know(given.host, _reached_at(scope)[0]):
                named = f"for {given.host!r}" if given else "for no host that can be"
                raise _forbidden(
                    f"this request is {named[:120]}, which is not a name of this machine: use its address, or list the "
                    "name in allowed_hosts (--allowed-hosts NAME)",
                    "host_not_allowed",
                )

    def _check_page(self, scope: Scope, headers: Headers) -> bool:
        """Whether the page that asks is welcome; False without a page, 403 for one that is not."""
        origins = headers.getlist("origin")
        listed = all(self._any_page or (hosts.origin(o) or o.strip().lower()) in self._pages for o in origins)
        how = "list its origin in `cors` (--cors ORIGIN) if it may"
        sites = {site.strip().lower() for site in headers.getlist("sec-fetch-site")}
        if "cross-site" in sites and not (listed and (origins or self._any_page)) and not _is_visit(scope, headers):
            raise _forbidden(f"a web page of another site may not use this server: {how}", "origin_not_allowed")
        if not origins:
            return False
        if not listed and not all(self._is_own(hosts.origin(o), scope, headers) for o in origins):
            raise _forbidden(f"a web page of {origins[0][:100]!r} may not use this server: {how}", "origin_not_allowed")
        return True

    def _is_own(self, page: Optional[hosts.Origin], scope: Scope, headers: Headers) -> bool:
        """Whether the page comes from this daemon: from where it was reached, or by a loopback name from its port."""
        if page is None or page.scheme != scope["scheme"]:
            return False
        here, port = _reached_at(scope)
        if hosts.is_loopback(page.host) and hosts.is_loopback(here) and page.port == port:
            return True
        named = scope["state"].get("named") or hosts.place(headers.get("host", ""))
        return named is not None and page == hosts.origin(f"{page.scheme}://{_as_text(named)}")

    async def _with_bounded_bodies(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the bytes of all bodies under way together; each has to come within its time."""
        held, end = 0, asyncio.get_running_loop().time() + self._config.body_s
        whole = False

        async def counted() -> Message:
            nonlocal held, whole
            if whole:  # what can still come is the end of the connection
                return await receive()
            try:
                left = max(end - asyncio.get_running_loop().time(), 0)
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                whole = True
                scope["state"]["headers"]["connection"] = "close"  # what still comes is nobody's
                seconds = f"{self._config.body_s:g} s"
                raise RequestRefused(f"the body did not arrive within {seconds}", status=408) from None
            size = len(message.get("body", b""))
            whole = not message.get("more_body", False)
            held += size
            self._bytes += size
            if self._bytes > self._most_bytes:
                scope["state"]["headers"]["connection"] = "close"
                raise QueueFull(
                    f"the requests under way hold {self._most_bytes >> 20} MiB already, all that this server takes: "
                    f"try again in about {_RETRY_S} s",
                    _RETRY_S,
                )
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._bytes -= held


def _is_visit(scope: Scope, headers: Headers) -> bool:
    """Whether a link of another site leads somebody to the chat page: into a tab, not into a frame."""
    opened = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return opened and scope["method"] in ("GET", "HEAD") and web.is_page(scope["path"])


def _check_body(headers: Headers, of_a_page: bool) -> None:
    """415 for a body in a form that nobody here reads."""
    if "transfer-encoding" not in headers and not headers.get("content-length", "").strip("0"):
        return  # there is none
    for coding in headers.getlist("content-encoding"):
        if coding.strip().lower() not in ("", "identity"):
            raise RequestRefused(
                f"the body is compressed ({coding.strip()[:40]}), which this server does not read: send it as it is, "
                "without Content-Encoding",
                status=415,
                code="unsupported_media_type",
            )
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if of_a_page and kind != "application/json":
        # Other kinds a browser sends without asking first; a page that means it can send this one.
        raise RequestRefused(
            "a body that comes with an Origin has to be sent as `Content-Type: application/json`",
            status=415,
            code="unsupported_media_type",
        )


def _preflight(headers: Headers) -> Response:
    """What a browser asks before it lets an allowed page call: with which headers, and into a private network."""
    asked = headers.get("access-control-request-headers")
    found = {"access-control-allow-methods": _METHODS, "access-control-max-age": str(_PREFLIGHT_S)}
    if asked is not None:
        found["access-control-allow-headers"] = asked
    for network in _NETWORK:
        if headers.get(f"access-control-request-{network}", "").lower() == "true":
            found[f"access-control-allow-{network}"] = "true"
    return Response(status_code=200, headers=found)


def add_headers(message: Any, scope: Scope) -> None:
    """Put what the gate wants in every answer into the start of one."""
    more: Mapping[str, str] = scope["state"].get("headers", {})
    message["headers"] = [*message.get("headers", ()), *((k.encode(), v.encode("latin-1")) for k, v in more.items())]


def _reached_at(scope: Scope) -> tuple[str, Optional[int]]:
    server = scope.get("server") or ("", None)
    return str(server[0]), server[1]


def _as_text(place: hosts.Place) -> str:
    host = f"[{place.host}]" if ":" in place.host else place.host
    return host if place.port is None else f"{host}:{place.port}"


def _forbidden(message: str, code: str) -> RkError:
    return RequestRefused(message, status=403, code=code)
