"""What Ollama's clients ask about models: /api/tags, /api/show, /api/ps, /api/pull, /api/version, and `/` itself.

None of it waits for the model, nor for its load.
"""

from __future__ import annotations

import datetime
import json
from typing import Any, Optional

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import rk3588
from rk3588 import runtime
from rk3588.bundle import Bundle
from rk3588.errors import RequestRefused
from rk3588.rkllm import MAX_CONTEXT
from rkruntime.daemon import template_facts
from rkruntime.daemon.config import Config
from rkruntime.daemon.fields import Fields, refuse
from rkruntime.daemon.jobs import Engine
from rkruntime.daemon.models import ModelName, Models

from .dialect import Authorise, Object, ReadFields
from .ollama import STREAM_TYPE, line, timestamp

VERSION = "0.12.0"  # of Ollama, whose API this is: programs compare it, part by part, with what they need
FOR_EVER = "2999-12-31T23:59:59Z"  # when the model will be unloaded, for those who have to be told a time
# At / for programs, of which some look for the first three words.
ROOT = "Ollama is running: rkchatd speaks its API, and OpenAI's under /v1; a browser gets a chat page here\n"
_FORMATS = {runtime.SIM: "gguf", runtime.NPU: "rkllm"}
_SIZES = {
    "context_length": "context_length", "embedding_length": "hidden", "block_count": "layers",
    "feed_forward_length": "intermediate", "attention.head_count": "heads", "attention.head_count_kv": "kv_heads",
    "vocab_size": "vocab_size",
}  # fmt: skip  # what GGUF calls them, and what a manifest does


class Catalogue:
    """One bundle, as Ollama's clients want it described under each of its names."""

    def __init__(self, bundle: Bundle, config: Config, models: Models, engine: Engine, kind: str) -> None:
        self._bundle, self._config, self._models, self._engine, self._kind = bundle, config, models, engine, kind
        model = runtime.model_for(bundle, kind)
        file: Object = next((f for f in bundle.manifest["files"] if model is not None and f["path"] == model.name), {})
        self._size, self._digest = int(file.get("size", 0)), str(file.get("sha256", ""))
        self._template = template_facts.text_of(bundle, config.model)
        self._modified = timestamp(datetime.datetime.fromtimestamp(models.created, datetime.timezone.utc))

    def tags(self) -> Object:
        return {"models": [{**self._entry(m), "modified_at": self._modified} for m in self._models.all.values()]}

    def running(self) -> Object:
        """What is loaded: one model, under its first name."""
        context = self._engine.status.context
        if self._engine.status.state != "ready":
            return {"models": []}
        entry = self._entry(self._models.find(None))
        return {
            "models": [{**entry, "expires_at": FOR_EVER, "size_vram": self._size, "context_length": context}]
        }

    def show(self, fields: Fields) -> Object:
        model = self._models.find(asked_name(fields))
        parameters = self._parameters()
        template = f'TEMPLATE """{self._template}"""\n' if self._template else ""
        lines = "".join(f"PARAMETER {each}\n" for each in parameters)
        return {
            "modelfile": f"FROM {with_tag(model.id)}\n{template}{lines}",
            "parameters": "\n".join(parameters),
            "template": self._template,
            "details": self._details(model),
            "model_info": self._info(),
            "capabilities": self._capabilities(),
            "modified_at": self._modified,
        }

    def _capabilities(self) -> list[str]:
        """Without ``embedding``: programs would take it for a model that can do nothing else."""
        facts = self._config.template_facts
        thinks = facts.thinks or bool(facts.thinking.variables)
        return ["completion", *(["tools"] if facts.takes_tools else []), *(["thinking"] if thinks else [])]

    def _entry(self, model: ModelName) -> Object:
        name = with_tag(model.id)
        return {
            "name": name, "model": name, "size": self._size, "digest": self._digest, "details": self._details(model),
        }  # fmt: skip

    def _details(self, model: ModelName) -> Object:
        family, parameters = self._family, self._number("parameters")
        return {
            "parent_model": self._models.name if model.lora else "",
            "format": _FORMATS[self._kind],
            "family": family,
            "families": [family],
            "parameter_size": _in_words(parameters) if parameters else "",
            "quantization_level": self._bundle.dtype,
        }

    def _info(self) -> Object:
        family = self._family
        found: Object = {"general.architecture": family, "general.basename": self._bundle.name}
        if parameters := self._number("parameters"):
            found["general.parameter_count"] = parameters
        found.update({f"{family}.{name}": size for name, ours in _SIZES.items() if (size := self._number(ours))})
        found[f"{family}.context_length"] = self._context
        return found

    def _parameters(self) -> list[str]:
        """As lines of a Modelfile have them."""
        found = [f"num_ctx {self._context}"]
        found += [f"{name} {value:g}" for name, value in self._config.sampling._asdict().items()]
        stop = self._bundle.manifest["tokenizer"].get("eos_token")
        return [*found, f"stop {json.dumps(stop, ensure_ascii=False)}"] if isinstance(stop, str) and stop else found

    @property
    def _family(self) -> str:
        found = self._bundle.manifest["model"].get("architecture")
        return found if isinstance(found, str) and found else "unknown"

    @property
    def _context(self) -> int:
        """Tokens that it is loaded with, or will be."""
        trained = self._bundle.context_length or MAX_CONTEXT
        return self._engine.status.context or self._config.model.context or min(trained, MAX_CONTEXT)

    def _number(self, name: str) -> int:
        found = self._bundle.manifest["model"].get(name)
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def with_tag(id: str) -> str:
    """As Ollama writes names: those without a tag have ``latest``."""
    return id if ":" in id else f"{id}:latest"


def asked_name(fields: Fields) -> str:
    """The model that is asked for, in either of the fields that clients use."""
    name = fields.text("model") or fields.text("name")
    if not name:
        refuse("model", "the name of a model")
    return name


def _in_words(parameters: int) -> str:
    """As 134.5M or 1.5B."""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters)


def routes(catalogue: Catalogue, models: Models, authorise: Authorise, read: ReadFields) -> list[Route]:
    async def root(_request: Request) -> Response:
        return PlainTextResponse(ROOT)

    async def version(request: Request) -> Response:
        authorise(request)
        return JSONResponse({"version": VERSION, "rkchatd": rk3588.__version__})

    async def tags(request: Request) -> Response:
        authorise(request)
        return JSONResponse(catalogue.tags())

    async def running(request: Request) -> Response:
        authorise(request)
        return JSONResponse(catalogue.running())

    async def show(request: Request) -> Response:
        authorise(request)
        return JSONResponse(catalogue.show(await read(request)))

    async def pull(request: Request) -> Response:
        """Nothing is fetched; but who asks for what is here already may go on."""
        authorise(request)
        fields = await read(request)
        name = asked_name(fields)
        try:
            models.find(name)
        except RequestRefused as error:
            raise RequestRefused(
                f"{error}; this server answers with the one bundle it was started with, and pulls none", "model",
                status=404, code="model_not_found",
            ) from error  # fmt: skip
        done: dict[str, Any] = {"status": "success"}
        streamed: Optional[bool] = fields.get("stream", True)
        if streamed is False:
            return JSONResponse(done)
        return Response(line(done), media_type=STREAM_TYPE)

    return [
        Route("/", root),
        Route("/api/version", version),
        Route("/api/tags", tags),
        Route("/api/ps", running),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/pull", pull, methods=["POST"]),
    ]
