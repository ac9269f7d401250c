"""The chat page: files of ``runtime/web``, as they are. A browser gets it at ``/``; programs that knock there do not.

It needs no key: there is nothing in it that is not public. What it asks the daemon for afterwards does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from rk3588 import resources
from rk3588.errors import RequestRefused

FOLDER = "web"
INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing but what this server itself has: no script or style in the page's text, no picture, frame or form that a
# model's answer could point elsewhere, and no HTML made of strings past the sanitiser.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for anew each time, which costs little: a new release is seen at once
}


class File(NamedTuple):
    content: bytes
    kind: str
    tag: str


def files() -> Mapping[str, File]:
    """The page's files by their paths; LibraryError where this installation has none."""
    found = {}
    for name, content in resources.folder(FOLDER).items():
        kind = _TYPES.get(name[name.rfind(".") :])
        if kind is not None:
            found[name] = File(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


class _Front(Route):
    """``/`` for those who can read HTML; for others the route behind it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, more = super().matches(scope)
        if match == Match.FULL and "text/html" not in Headers(scope=scope).get("accept", ""):
            return Match.NONE, {}
        return match, more


def routes() -> list[Route]:
    """To be put before any other route of ``/``."""
    known = files()

    async def front(request: Request) -> Response:
        return _response(known[INDEX], request)

    async def file(request: Request) -> Response:
        found = known.get(request.path_params["path"])
        if found is None:
            raise RequestRefused("the chat page has no such file", status=404, code="not_found")
        return _response(found, request)

    return [_Front("/", front), Route(f"/{FOLDER}/{{path:path}}", file)]


def is_page(path: str) -> bool:
    """Whether a path is of the page, which any site may lead a browser to: it does nothing by itself."""
    return path == "/" or path.startswith(f"/{FOLDER}/")


def _response(file: File, request: Request) -> Response:
    headers = {**_HEADERS, "etag": file.tag, "vary": "Accept"}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "content-type": file.kind})
