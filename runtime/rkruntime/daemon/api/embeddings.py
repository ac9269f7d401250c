"""Embeddings in both languages: /v1/embeddings, /api/embed, /api/embeddings. Bodies in, bodies out.

Vectors come as JSON already: what a list of 64 makes of text is a megabyte, and is put together here, not made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from rk3588.errors import RequestRefused, RkError
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse
from rkruntime.daemon.jobs import Durations, Embed, Job

from . import ollama, openai
from .dialect import Failure, FindModel, Usage
from .ollama_requests import asks_to_unload, num_ctx

MAX_TEXTS = 64


@dataclass(frozen=True)
class EmbedRequest:
    """One request. ``context``: tokens that were asked for, as in ``AnswerRequest``."""

    job: Job
    embed: Embed
    model: str
    began_ns: int
    ignored: tuple[str, ...] = ()
    context: Optional[int] = None


class EmbedEndpoint(NamedTuple):
    """Where a language takes such requests, how it reads them, and how it answers."""

    path: str
    read: Callable[[Mapping[str, Any], Config, FindModel, str], EmbedRequest]
    body: Callable[[EmbedRequest, Sequence[str], Usage], str]
    failure: Callable[[RkError], Failure]


def _read_openai(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> EmbedRequest:  # noqa: ARG001
    fields = Fields(body)
    form = fields.text("encoding_format") or "float"
    if form not in ("float", "base64"):
        refuse("encoding_format", "float or base64")
    texts = _texts(fields, "input")
    if not texts:
        refuse("input", "a string, or a list of strings that is not empty")
    dimensions = fields.whole("dimensions")
    if dimensions is not None and dimensions < 1:
        refuse("dimensions", "1 or more")
    model = find(fields.text("model"))
    embed = Embed(texts, dimensions, form == "base64")
    return EmbedRequest(_job(embed, model.lora, model.background, owner), embed, model.id, time.monotonic_ns())


def _read_embed(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> EmbedRequest:  # noqa: ARG001
    fields = Fields(body)
    texts = () if fields.get("input") in (None, "") else _texts(fields, "input")
    dimensions = fields.whole("dimensions")
    if dimensions is not None and dimensions < 0:
        refuse("dimensions", "1 or more")
    return _of_ollama(fields, Embed(texts, dimensions or None, truncate=fields.flag("truncate")), find, owner)


def _read_embeddings(body: Mapping[str, Any], config: Config, find: FindModel, owner: str) -> EmbedRequest:  # noqa: ARG001
    fields = Fields(body)
    prompt = fields.text("prompt")
    return _of_ollama(fields, Embed((prompt,) if prompt else ()), find, owner)


def _of_ollama(fields: Fields, embed: Embed, find: FindModel, owner: str) -> EmbedRequest:
    model = find(fields.text("model"))
    ignored = ("keep_alive",) if asks_to_unload(fields) else ()
    job = _job(embed, model.lora, model.background, owner)
    name = fields.text("model") or model.id
    return EmbedRequest(job, embed, name, time.monotonic_ns(), ignored, num_ctx(fields))


def _job(embed: Embed, lora: Optional[str], background: bool, owner: str) -> Job:
    return Job(embed=embed, lora=lora, background=background, owner=owner)


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    found = fields.get(name)
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list):
        refuse(name, "a string or a list of strings")
    if len(texts) > MAX_TEXTS:
        raise RequestRefused(f"{len(texts)} texts are too many: one request takes {MAX_TEXTS}", name)
    if texts and all(isinstance(each, (int, list)) for each in texts):
        raise RequestRefused(
            f"{name!r} has token ids, which would be those of another model's vocabulary: send the text itself "
            "(LangChain: check_embedding_ctx_length=False)",
            name,
        )
    if not all(isinstance(each, str) for each in texts):
        refuse(name, "a string or a list of strings")
    return tuple(texts)


def _openai_body(request: EmbedRequest, vectors: Sequence[str], usage: Usage) -> str:
    quote = '"' if request.embed.as_base64 else ""
    data = ",".join(
        f'{{"object":"embedding","index":{at},"embedding":{quote}{vector}{quote}}}' for at, vector in enumerate(vectors)
    )
    tokens = usage.prompt or 0
    rest = {"model": request.model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
    return f'{{"object":"list","data":[{data}],{json.dumps(rest)[1:]}'


def _embed_body(request: EmbedRequest, vectors: Sequence[str], usage: Usage) -> str:
    known = usage._replace(durations=usage.durations or Durations())
    cost = {**ollama.durations(request.began_ns, known), "model": request.model}
    del cost["prompt_eval_duration"]
    return f'{{"embeddings":[{",".join(vectors)}],{json.dumps(cost)[1:]}'


def _embeddings_body(_request: EmbedRequest, vectors: Sequence[str], _usage: Usage) -> str:
    return f'{{"embedding":{vectors[0] if vectors else "[]"}}}'


ENDPOINTS = (
    EmbedEndpoint("/v1/embeddings", _read_openai, _openai_body, openai.failure),
    EmbedEndpoint("/api/embed", _read_embed, _embed_body, ollama.failure),
    EmbedEndpoint("/api/embeddings", _read_embeddings, _embeddings_body, ollama.failure),
)
