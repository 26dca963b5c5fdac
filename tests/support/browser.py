"""The console's page in a real browser, headless: Debian's chromium, by playwright. Each view is
looked at, by axe-playwright-python, for what keeps people out; with FUSEJOURNAL_TEST_SCREENSHOTS a
picture of each is put into that directory."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.console_processes import PASSWORD, ConsoleProcesses

_CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    _CHROMIUM is None
    or find_spec("playwright") is None
    or find_spec("axe_playwright_python") is None,
    reason="the browser is not here",
)
_ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
_WIDTHS = (1280, 390)


@contextmanager
def browser_page(
    processes: ConsoleProcesses, role: str, *, expected: tuple[str, ...] = (), **options: Any
) -> Iterator[Any]:
    """A page on which a new user, "anna", is logged in, in the console's network. What goes wrong
    in it fails the test, but for what has one of the words *expected*."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    code = processes.add_user("anna", role)
    with TemporaryDirectory(prefix="fusejournal-browser-") as directory, sync_playwright() as made:
        program = _program(Path(directory), processes.namespace)
        browser = made.chromium.launch(executable_path=program, args=_ARGUMENTS)
        page = browser.new_context(**options).new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on(
            "console",
            lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None,
        )
        page.goto(processes.url)
        look_at(page, "login")
        page.get_by_role("button", name="I have a one-time code").click()
        page.get_by_label("Name").fill("anna")
        page.get_by_label("One-time code").fill(code)
        page.get_by_label("New password").fill(PASSWORD)
        page.get_by_role("button", name="Choose the password").click()
        page.get_by_role("heading", name="Overview").wait_for()
        yield page
        browser.close()
    # A session that is over is told by a refusal, which the browser notes.
    known = ("401", *expected)
    assert [words for words in wrong if not any(one in words for one in known)] == []


def _program(directory: Path, namespace: str) -> str:
    """Returns the command that starts the browser. In another network it has to be that whole
    process; playwright talks to it through pipes."""
    assert _CHROMIUM is not None
    if not namespace:
        return _CHROMIUM
    script = directory / "chromium"
    enter = f"nsenter --net=/run/netns/{namespace}"
    script.write_text(f'#!/bin/sh\nexec {enter} -- {_CHROMIUM} "$@"\n')
    script.chmod(0o755)
    return str(script)


def look_at(page: Any, name: str) -> None:
    """Fails where axe-core finds that a view keeps people out, or where it is wider than a phone;
    takes pictures of it, light and dark."""
    pictures, was = os.environ.get("FUSEJOURNAL_TEST_SCREENSHOTS"), page.viewport_size
    for scheme in ("dark", "light"):
        # (Without motion: axe would judge colours that are on their way to others.)
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for width in _WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if pictures:
                # As high as it is: what is out of sight is not drawn, and what sticks would stick.
                height = page.evaluate("document.documentElement.scrollHeight")
                page.set_viewport_size({"width": width, "height": max(900, min(height, 6000))})
                page.screenshot(path=f"{pictures}/{name}-{scheme}-{width}.png")
        page.set_viewport_size(was)
        from axe_playwright_python.base import AXE_FILE_PATH

        page.evaluate(AXE_FILE_PATH.read_text())
        found = page.evaluate("axe.run()")["violations"]
        told = [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]
        assert told == [], (name, scheme)


def await_state(page: Any, state: str) -> None:
    """Returns once the job that is shown is in *state*."""
    page.locator(".head .pill").get_by_text(state, exact=True).wait_for()
