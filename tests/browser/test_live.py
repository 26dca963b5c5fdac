"""The page keeps up with what happens: no entry is missing from a live list, and a button that is
about to be pressed stays. A slow tier by name: see test_page.py."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import await_state, browser_page, needs_browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.layer import Layer
from tests.support.mirrors import started

pytestmark = [pytest.mark.mount, needs_browser]
_PATIENCE_MS = 60_000


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.start()
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


def _make_files(directory: Path, prefix: str, count: int) -> None:
    for number in range(count):
        (directory / f"{prefix}{number}").touch()


def _await_rows(page: Any, count: int) -> None:
    page.wait_for_function(
        "count => document.querySelectorAll('tbody tr.rows').length === count",
        arg=count,
        timeout=_PATIENCE_MS,
    )


def test_a_live_list_has_every_entry(layer: Layer, processes: ConsoleProcesses) -> None:
    """More come at once than one answer has."""
    _make_files(layer.mountpoint, "first ", 5)
    with browser_page(processes, "admin") as page:
        page.goto(f"{processes.url}#/v/hall/volume/timeline?op=create")
        _await_rows(page, 5)
        # It learns nothing of them until all are there.
        page.route("**/entries*", lambda route: route.abort())
        _make_files(layer.mountpoint, "second ", 350)
        page.unroute("**/entries*")
        (layer.mountpoint / "last").touch()
        _await_rows(page, 356)
        seen = page.locator("tbody tr.rows td:nth-child(2)").all_inner_texts()
        seqs = [int(one.replace(",", "")) for one in seen]
        assert seqs == sorted(set(seqs), reverse=True)


def test_what_is_pressed_stays(tmp_path: Path) -> None:
    """The button is a peer's; beside it the head of the volume changes all the time."""
    with ExitStack() as stack:
        primary, _ = stack.enter_context(started(tmp_path, None))
        processes = stack.enter_context(console_processes(primary, tmp_path / "said", "east"))
        page = stack.enter_context(browser_page(processes, "admin"))
        for place in ("", "v/east/primary/roles"):
            page.goto(f"{processes.url}#/{place}")
            button = page.get_by_role("button", name="Pause mirror")
            button.focus()
            page.evaluate("window.pressed = document.activeElement")
            head = _shown_head(page)
            _make_files(primary.mountpoint, f"in {len(place)} ", 10)
            page.wait_for_function(
                f"head => ({_SHOWN_HEAD})() !== head", arg=head, timeout=_PATIENCE_MS
            )
            assert page.evaluate("document.activeElement === window.pressed")
            page.keyboard.press("Enter")
            page.get_by_role("dialog").get_by_text("peer pause primary mirror").wait_for()
            page.keyboard.press("Escape")


_SHOWN_HEAD = "() => document.querySelector('article dl').innerText"


def _shown_head(page: Any) -> str:
    return str(page.evaluate(_SHOWN_HEAD))


def test_a_job_is_followed_again(layer: Layer, processes: ConsoleProcesses) -> None:
    """The page says that nothing answers until something does."""
    (layer.mountpoint / "file").write_text("content")
    (layer.mountpoint / "file").unlink()
    with browser_page(processes, "admin", expected=("ERR_FAILED",)) as page:
        page.goto(f"{processes.url}#/v/hall/volume/timeline?op=unlink")
        page.get_by_role("checkbox", name="Choose entry").check()
        page.get_by_role("button", name="Plan to take back 1 chosen").click()
        await_state(page, "planned")
        away = "**/api/agents/hall/jobs/*"
        page.route(
            away,
            lambda route: route.abort() if route.request.method == "GET" else route.continue_(),
        )
        page.get_by_role("button", name="Do it: 1 change").click()
        page.get_by_text("How far it is, is not known now").wait_for()
        page.unroute(away)
        await_state(page, "done")
        assert page.get_by_text("How far it is, is not known now").count() == 0
    assert (layer.mountpoint / "file").read_text() == "content"
