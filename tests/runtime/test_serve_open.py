"""`rk3588 serve --open`: the chat page in a browser, where there is one."""

from __future__ import annotations

import logging
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path

import pytest

from rkruntime.commands import serve
from rkruntime.daemon.config import Address
from tests.daemon_process import running
from tests.daemon_server import until

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "BROWSER")


@pytest.mark.parametrize(
    ("listens", "found"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_where_the_page_is(listens: str, found: str) -> None:
    assert serve._page(Address(listens, 8080)) == f"http://{found}:8080/"


@pytest.mark.skipif(sys.platform == "darwin", reason="there is always a screen")
def test_without_a_screen_it_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []

    def cannot(page: str) -> bool:
        opened.append(page)
        return False

    monkeypatch.setattr(webbrowser, "open", cannot)
    for name in SCREENS:
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING):
        serve._open("http://127.0.0.1:1/")
    assert "no browser" in caplog.text and not opened
    monkeypatch.setenv("DISPLAY", ":0")
    serve._open("http://127.0.0.1:1/")
    assert opened == ["http://127.0.0.1:1/"]


def test_the_browser_is_led_to_the_page(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    browser, asked = tmp_path / "browser", tmp_path / "asked"
    browser.write_text(f'#!/bin/sh\necho "$1" > {asked}.part\nmv {asked}.part {asked}\n')
    browser.chmod(0o755)
    program = str(Path(sys.executable).parent / "rk3588")
    command = (program, "serve", str(tiny_bundles["w8a8"]), "--listen", "127.0.0.1:0", "--open")
    with running(command, {"BROWSER": str(browser)}) as daemon:
        until(asked.exists)
        assert asked.read_text() == f"http://127.0.0.1:{daemon.port}/\n"
        page = daemon.request("GET", "/", headers={"accept": "text/html"})
        assert page.status == 200 and b"/web/app.js" in page.body
