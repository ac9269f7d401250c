"""The endpoints that answer with embeddings, in any language: a body in, all vectors out, through the one queue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rk3588.errors import RequestRefused

from .answering import GRACE_S, deadline_of, ignored_header, read_body, while_there
from .api.dialect import FindModel, Usage
from .api.embeddings import EmbedEndpoint, EmbedRequest
from .config import Config
from .fields import parse_json
from .jobs import Engine
from .keys import Keys, shown_in


class EmbedAnswering:
    """An ASGI application for one endpoint. ``rotated``: the model's hidden states are in a basis of its own."""

    def __init__(
        self, engine: Engine, config: Config, keys: Keys, find: FindModel, endpoint: EmbedEndpoint, rotated: bool
    ) -> None:
        self._engine, self._config, self._keys, self._find = engine, config, keys, find
        self._endpoint, self.path, self._rotated = endpoint, endpoint.path, rotated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        facts: dict[str, Any] = scope["state"]["facts"]
        owner = facts["key"] = self._keys.owner(shown_in(headers)) or None
        body = parse_json(await read_body(headers, receive, self._config.max_body_kb << 10))
        request = self._endpoint.read(body, self._config, self._find, owner or "")
        if self._rotated:
            raise RequestRefused(
                "this model is rotated (rkconvert --rotate): its hidden states are in another basis than the "
                "original's, and embeddings made of them could not be compared with any others; load a bundle that was "
                "converted without --rotate",
                code="rotated_model",
            )
        request = replace(request, job=replace(request.job, deadline_s=deadline_of(headers)))
        facts.update(model=request.model, texts=len(request.embed.texts))
        work = self._answer(request, facts, scope, receive, send)
        await while_there(work, receive, facts, self._config.deadline_s + GRACE_S)

    async def _answer(
        self, request: EmbedRequest, facts: dict[str, Any], scope: Scope, receive: Receive, send: Send
    ) -> None:
        vectors, usage = await self._run(request) if request.embed.texts else ([], Usage(0, 0))
        facts.update(prompt_tokens=usage.prompt, ended="stop")
        extra = ignored_header(request.ignored, request.context, self._engine.status.context)
        body = self._endpoint.body(request, vectors, usage)
        await Response(body, media_type="application/json", headers=extra)(scope, receive, send)

    async def _run(self, request: EmbedRequest) -> tuple[list[str], Usage]:
        answer = await self._engine.submit(request.job)
        try:
            vectors = [piece.text async for piece in answer.pieces()]
        finally:
            await answer.close()
        return vectors, Usage(answer.prompt_tokens, 0, answer.durations)
