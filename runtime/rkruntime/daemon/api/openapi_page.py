"""The chat page, /stats and /metrics in the OpenAPI document."""

from __future__ import annotations

from rkruntime.daemon import web

from .dialect import Object
from .openapi_shapes import STRING, get, object_, or_null, schema

STATS = ("model", "runtime", "board", "state", "queued", "running", "restarts", "measured", "predicted", "now")


def stats(status: Object) -> Object:
    """What /stats answers with, ``status`` among it."""
    place = or_null("integer", description="0: being answered; 1: next.")
    return object_({**status, "place": place}, *STATS)


def paths(one: Object) -> Object:
    """The chat page, and how things are."""
    place = {"name": "request", "in": "query", "required": False, "schema": STRING}
    place["description"] = "The X-Request-Id of a request whose place in the queue is wanted."
    stats = get("stats", "How the daemon and its board are", {200: ("As it is now.", schema("Stats"))}, 401, 403)
    stats["parameters"].append(place)
    metrics = get("metrics", "The same, as Prometheus reads it", _texts("text/plain"), 401, 403)
    page = get("page", "The chat page, where HTML is accepted", _texts("text/html", "text/plain"), 403, open=True)
    which = {"name": "path", "schema": {"enum": sorted(web.files())}}
    kinds = ("text/html", "text/javascript", "text/css", "image/svg+xml")
    file = get("file", "A file of the page", _texts(*kinds), 403, 404, open=True, path={**one, **which})
    gets = {"/stats": stats, "/metrics": metrics, "/": page, "/web/{path}": file}
    return {path: {"get": get} for path, get in gets.items()}


def _texts(*kinds: str) -> dict[int, tuple[str, Object]]:
    return {200: ("As it is.", {"content": {kind: {"schema": STRING} for kind in kinds}})}
