"""How many tokens a prompt has, without an answer: /tokenize, in the words of vLLM's and llama.cpp's servers, and
Anthropic's /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Optional

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rk3588.errors import Overdue, RequestRefused
from rkruntime.daemon.answering import deadline_of
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields
from rkruntime.daemon.jobs import Engine, Job

from . import anthropic, anthropic_requests, openai_requests
from .dialect import Authorise, FindModel, Object, ReadFields


def routes(
    engine: Engine, config: Config, find: FindModel, authorise: Authorise, read_fields: ReadFields
) -> list[Route]:
    async def tokenize(request: Request) -> Response:
        authorise(request)
        job = read(await read_fields(request), config, find)
        return JSONResponse(await count(engine, job, deadline_of(request.headers)))

    async def message(request: Request) -> Response:
        authorise(request)
        job = anthropic_requests.read(await read_fields(request), config, find, "").job
        counted = await count(engine, job, deadline_of(request.headers))
        return JSONResponse({"input_tokens": counted["count"]})

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route(f"{anthropic.PATH}/count_tokens", message, methods=["POST"]),
    ]


def read(body: Mapping[str, Any], config: Config, find: FindModel) -> Job:
    """A conversation in `messages`, or a text in `prompt` or `content`; as the endpoints that answer read them."""
    fields = Fields(body)
    texts = [name for name in ("messages", "prompt", "content") if name in fields]
    if len(texts) != 1:
        raise RequestRefused("one of 'messages', 'prompt' and 'content' has to be there, and no two of them", "prompt")
    if texts == ["messages"]:
        return openai_requests.chat(body, config, find, "").job
    return openai_requests.completion({"prompt": fields[texts[0]], "model": fields.get("model")}, config, find, "").job


async def count(engine: Engine, job: Job, deadline_s: Optional[float]) -> Object:
    """The number, and how many there may be."""
    most = min(deadline_s or engine.settings.deadline_s, engine.settings.deadline_s)
    try:
        tokens = await asyncio.wait_for(engine.count(job), most)
    except asyncio.TimeoutError:
        raise Overdue(f"the model was not ready within {most:.0f} s") from None
    if tokens is None:
        raise RequestRefused("this bundle has no vocabulary to count tokens with: convert it again", status=501)
    return {"count": tokens, "max_model_len": engine.status.context}
