"""The chat page's files: who gets them, by which headers, how large they are, and that they are what npm has."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rkruntime.daemon import web
from tests.daemon_server import Service, served
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8", "sec-fetch-mode": "navigate"}


@pytest.fixture(scope="module")
def guarded(tiny_bundles: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("me:secret\n")
    with served(tiny_bundles["w8a8"], FakeEngine, keys=keys) as running:
        yield running


def test_a_browser_gets_the_page_and_a_program_a_line(guarded: Service) -> None:
    page = guarded.request("GET", "/", headers=BROWSER)
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<!doctype html>" in page.body
    for accept in ("*/*", "application/json", ""):
        told = guarded.request("GET", "/", headers={"accept": accept})
        assert (told.status, told.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert told.body and b"<" not in told.body
    assert [guarded.request("HEAD", "/", headers=each).status for each in ({}, BROWSER)] == [200, 200]
    assert guarded.request("POST", "/", {}).status == 405


def test_the_page_needs_no_key_and_all_it_asks_for_does(guarded: Service) -> None:
    for name in web.files():
        assert guarded.get(f"/web/{name}").status == 200
    for path in ("/stats", "/metrics", "/v1/models"):
        assert guarded.get(path).status == 401
        assert guarded.get(path, authorization="Bearer secret").status == 200


def test_its_headers_let_nothing_in_from_elsewhere(guarded: Service) -> None:
    for path in ("/", "/web/app.js", "/web/style.css"):
        headers = guarded.request("GET", path, headers=BROWSER).headers
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_a_file_that_has_not_changed_is_not_sent_again(guarded: Service) -> None:
    tag = guarded.get("/web/app.js").headers["etag"]
    again = guarded.get("/web/app.js", if_none_match=tag)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)


@pytest.mark.parametrize("name", ["../app.py", "vendor/vendor.json", "%2e%2e/x.yaml", "/etc/passwd", "x" * 3000, ""])
def test_only_its_own_files_are_there(guarded: Service, name: str) -> None:
    found = guarded.get(f"/web/{name}")
    assert found.status == 404 and found.error["code"] == "not_found"


def test_a_link_of_another_site_leads_to_the_page_and_to_nothing_else(guarded: Service) -> None:
    visit = {**BROWSER, "sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert guarded.request("GET", "/", headers=visit).status == 200
    assert guarded.request("GET", "/", headers={**visit, "sec-fetch-dest": "iframe"}).status == 403
    assert guarded.request("GET", "/", headers={**visit, "sec-fetch-mode": "no-cors"}).status == 403
    assert guarded.request("GET", "/web/app.js", headers={"sec-fetch-site": "cross-site"}).status == 403
    for path in ("/v1/models", "/stats", "/metrics", "/health"):
        assert guarded.request("GET", path, headers=visit).status == 403


def test_the_page_is_small() -> None:
    assert sum(len(file.content) for file in web.files().values()) < 300_000


def test_its_modules_are_asked_for_at_once() -> None:
    """Not one after the other, as each is found in the one before: behind a tunnel every turn takes its time."""
    index = web.files()[web.INDEX].content.decode()
    for name in web.files():
        if name.endswith(".js"):
            assert f'"/web/{name}"' in index, f"index.html has no link or script for {name}"


def test_its_libraries_are_as_pinned() -> None:
    tool = ROOT / "runtime" / "tools" / "vendor_web.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_library_that_was_changed_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "runtime" / "tools"))
    vendor_web = importlib.import_module("vendor_web")
    for file in vendor_web.VENDOR.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(vendor_web, "VENDOR", tmp_path)
    (tmp_path / "marked.js").write_bytes(b"evil()")
    (tmp_path / "more.js").write_bytes(b"")
    assert vendor_web.wrong() == ["marked.js", "more.js"]


def test_the_zipapp_carries_the_page(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        for name, file in web.files().items():
            assert archive.read(f"rk3588/web/{name}") == file.content
