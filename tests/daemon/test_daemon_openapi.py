"""The OpenAPI document against the daemon: the same routes, and whatever schemathesis sends is answered as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers

from rk3588.errors import RequestRefused
from rkruntime.daemon import app, config
from rkruntime.daemon.answering import DEADLINE_HEADER, deadline_of
from rkruntime.daemon.api import openapi
from rkruntime.daemon.engine import WorkerEngine
from tests.daemon_server import Service, served, until
from tests.fake_engine import FakeEngine

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance"
)


def test_the_document_has_the_routes_of_the_daemon(tiny_bundles: Mapping[str, Path]) -> None:
    settings = config.make(None, {"bundle": tiny_bundles["w8a8"]})
    routes = app.make(FakeEngine(settings.engine()), settings).routes
    served = {(r.path.replace(":path", ""), m.lower()) for r in routes for m in r.methods if m != "HEAD"}  # type: ignore
    described = {
        (path, method) for path, methods in json.loads(openapi.document())["paths"].items() for method in methods
    }
    assert served == described


def test_the_document_is_what_the_tables_of_the_daemon_say() -> None:
    """What a request may hold stood twice, and the deadline's form had drifted: fractions were said to be refused."""
    assert openapi.document().decode() == openapi.text(), "run: python -m rkruntime.daemon.api.openapi --write"


@pytest.mark.parametrize(
    "text", ["1", "0.5", "600", "007", "999999.999", "0", "0.0", "-1", "1e3", "1234567", "", "5 s"]
)
def test_the_document_says_which_deadlines_are_taken(text: str) -> None:
    post = json.loads(openapi.document())["paths"]["/v1/chat/completions"]["post"]
    pattern = next(each["schema"]["pattern"] for each in post["parameters"] if each["name"] == DEADLINE_HEADER)
    try:
        taken = deadline_of(Headers({DEADLINE_HEADER: text})) == float(text) > 0
    except RequestRefused:
        taken = False
    assert taken == bool(re.search(pattern, text))


def explore(service: Service, folder: Path, checks: str, *options: str) -> str:
    """Run schemathesis with a document that names the model, which it could not guess; what it printed."""
    document: dict[str, Any] = service.get("/openapi.json").json
    schemas = document["components"]["schemas"]
    for request in (
        "ChatRequest", "CompletionRequest", "ResponseRequest", "EmbeddingRequest", "TokenizeRequest", "OllamaChat",
        "OllamaGenerate", "OllamaEmbed", "OllamaPrompt", "MessagesRequest",
    ):  # fmt: skip
        schemas[request]["properties"]["model"] = {"enum": ["tiny", "tiny:background", None]}
    for request in ("OllamaShow", "OllamaPull"):
        schemas[request]["properties"].update({key: {"enum": ["tiny", "tiny:latest"]} for key in ("model", "name")})
    # A demanded call has to be of one of the tools, which the document can say in words only.
    schemas["ChatRequest"]["properties"]["tool_choice"] = {"enum": ["auto", "none", None]}
    # A deadline that passes is a server error, rightly, and not to be provoked here.
    for methods in document["paths"].values():
        for parameter in (each for method in methods.values() for each in method.get("parameters", [])):
            if parameter["name"] == "x-rk-deadline-s":
                parameter["schema"]["pattern"] = "^[1-9][0-9]{2,5}$"
    # A model that cannot answer in JSON is no fault of the request's.
    (folder / "schemathesis.toml").write_text('[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", "422"]\n')
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", service.url, "--checks", checks]
    done = subprocess.run([*command, "--seed", "1", *options], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    return done.stdout


def test_schemathesis_finds_nothing(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as running:
        explore(running, tmp_path, CHECKS + ",positive_data_acceptance", "--phases", "examples,coverage,stateful")
        answered = sum(answer.finish_reason != "" for answer in running.engine.answers)
        assert answered > 50


@pytest.mark.slow
def test_schemathesis_finds_nothing_over_the_twin(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    with served(tiny_bundles["w8a8"], WorkerEngine, max_tokens=4) as running:
        until(lambda: running.get("/ready").status == 200)
        # Not all that is allowed is accepted: it may be longer than the context.
        explore(running, tmp_path, CHECKS, "--max-examples", "300")
        assert running.get("/ready").json["restarts"] == 0
