"""The page in a real browser, headless: the story of a removed tree by clicks alone, versions, a
primary that moves, odd names, a narrow window, and a session that ends. A slow tier by name: it
needs Debian's chromium and playwright, which no other test does (HACKING.md). With
axe-playwright-python, each view is looked at for what keeps people out; with
FUSEJOURNAL_TEST_SCREENSHOTS a picture of each is put into that directory."""

import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import await_state, browser_page, look_at, needs_browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.layer import Layer
from tests.support.mirrors import started, wait_for
from tests.support.trees import difference, image

pytestmark = [pytest.mark.mount, needs_browser]
_MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.start()
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


def test_versions_and_a_restore_in_place(layer: Layer, processes: ConsoleProcesses) -> None:
    (layer.mountpoint / "project").mkdir()
    for name in ("plan.txt", _MARKUP):
        (layer.mountpoint / "project" / name).write_text(f"content of {name}")
    was = image(layer.mountpoint / "project")
    with browser_page(processes, "admin") as page:
        page.get_by_role("link", name="volume", exact=True).click()
        page.get_by_role("link", name="Versions").click()
        page.get_by_text("versions are kept nowhere yet").wait_for()
        look_at(page, "versions-none")
        layer.run("version", "store", "init", "volume", "--store", str(layer.base / "store"))
        page.reload()
        page.get_by_label("Name of a new version").fill("before")
        page.get_by_role("button", name="Make a version now").click()
        await_state(page, "done")
        look_at(page, "job-version")
        shutil.rmtree(layer.mountpoint / "project")
        page.go_back()
        page.get_by_role("button", name="Make a version now").click()
        await_state(page, "done")
        page.go_back()
        page.get_by_role("heading", name="2 versions").wait_for()
        page.get_by_role("button", name="Protect before").click()
        page.get_by_role("table").get_by_text("protected", exact=True).wait_for()
        look_at(page, "versions")
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("button", name="Compare the two that are chosen").click()
        page.get_by_role("heading", name="3 files differ").wait_for()
        look_at(page, "versions-compared")
        page.go_back()
        page.get_by_role("link", name="before").click()
        page.get_by_role("link", name="project").click()
        page.get_by_role("cell", name=_MARKUP, exact=True).wait_for()
        look_at(page, "version-tree")
        with page.expect_download() as download:
            page.get_by_role("link", name="Download plan.txt").click()
        assert Path(download.value.path()).read_text() == "content of plan.txt"
        page.get_by_role("button", name="Plan to restore aside").click()
        await_state(page, "planned")
        page.get_by_text("2 names, 58").wait_for()
        look_at(page, "job-aside-planned")
        page.get_by_role("button", name="Restore it: 2 files").click()
        await_state(page, "done")
        page.get_by_role("heading", name="To remove what was restored").wait_for()
        look_at(page, "job-aside-done")
        page.get_by_role("button", name="Remove what was restored").click()
        page.get_by_text("(removed)").wait_for()
        page.goto(f"{processes.url}#/v/hall/volume/versions")
        page.get_by_role("link", name="before").click()
        page.get_by_role("link", name="project").click()
        page.get_by_role("button", name="Plan to restore in place").click()
        await_state(page, "planned")
        look_at(page, "job-in-place-planned")
        page.get_by_role("button", name="Do it: 3 changes").click()
        await_state(page, "done")
        page.get_by_role("heading", name="The way back from this").wait_for()
        assert difference(was, image(layer.mountpoint / "project")) == ""
        page.get_by_role("button", name="Plan to take it back").click()
        page.get_by_role("heading", name="Take back what a job did").wait_for()
        await_state(page, "planned")
        page.get_by_role("button", name="Do it: ").click()
        await_state(page, "done")
        assert not (layer.mountpoint / "project").exists()
        page.goto(f"{processes.url}#/v/hall/volume/versions")
        page.get_by_role("button", name="See what the policy would let go").click()
        await_state(page, "planned")
        page.get_by_text("all versions are kept").wait_for()
        look_at(page, "job-prune")
        page.goto(f"{processes.url}#/v/hall/volume/versions")
        page.get_by_role("button", name="Protect no longer before").click()
        page.get_by_role("button", name="Protect before").wait_for()
        page.get_by_role("button", name="Delete before").click()
        button = page.get_by_role("button", name="Delete it for ever")
        page.get_by_label("To confirm, type before").fill("befor")
        assert button.is_disabled()
        look_at(page, "version-delete")
        page.get_by_label("To confirm, type before").fill("before")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="1 version", exact=True).wait_for()


def test_the_primary_moves_by_clicks(tmp_path: Path) -> None:
    """And a page that is open elsewhere follows."""
    with ExitStack() as stack:
        first, second = stack.enter_context(started(tmp_path, None))
        processes = stack.enter_context(console_processes(first, tmp_path / "said", "east"))
        (tmp_path / "said2").mkdir()
        other = ConsoleProcesses(second, tmp_path / "said2")
        stack.callback(other.kill)
        other.start_agent()
        other.pair("west", processes)
        page = stack.enter_context(browser_page(processes, "admin"))
        page.goto(f"{processes.url}#/v/east/primary/roles")
        page.get_by_text("primary on east is the primary, in reign").wait_for()
        look_at(page, "roles")
        watching = page.context.new_page()
        watching.goto(f"{processes.url}#/v/west/mirror1/roles")
        watching.get_by_text("primary on east is the primary, in reign").wait_for()
        page.get_by_role("button", name="Hand over to mirror1").click()
        await_state(page, "planned")
        look_at(page, "job-handoff-planned")
        page.get_by_role("button", name="Hand over to mirror1 now").click()
        await_state(page, "done")
        look_at(page, "job-handoff")
        watching.get_by_text("mirror1 on west is the primary, in reign").wait_for()
        watching.get_by_role("article").filter(has_text="primary on east").get_by_text(
            "mirror, running"
        ).wait_for()
        (second.mountpoint / "later").write_text("content")
        second.kill()
        wait_for(lambda: not second.is_alive(), second.words)
        page.goto(f"{processes.url}#/v/east/primary/roles")
        page.get_by_text("No node that the console reaches serves as primary now.").wait_for()
        page.get_by_role("button", name="Promote…").click()
        page.get_by_text("It will be refused").wait_for()
        look_at(page, "job-promote-refused")
        page.get_by_role("button", name="Plan it by force").click()
        page.get_by_text("By force, although").wait_for()
        page.get_by_role("button", name="Promote it…").click()
        page.get_by_label("To confirm, type primary").fill("primary")
        look_at(page, "job-promote-confirm")
        page.keyboard.press("Enter")
        await_state(page, "done")
        page.goto(f"{processes.url}#/v/east/primary/roles")
        page.get_by_text("primary on east is the primary, in reign").wait_for()
        look_at(page, "roles-after")


def test_a_removed_tree_comes_back_by_clicks(layer: Layer, processes: ConsoleProcesses) -> None:
    tree = layer.mountpoint / "project"
    (tree / "sub").mkdir(parents=True)
    for name in ("plan.txt", 'sub/it\'s "so".txt', _MARKUP):
        (tree / name).write_text(f"content of {name}")
    was = image(tree)
    shutil.rmtree(tree)
    with browser_page(processes, "operator") as page:
        page.get_by_text("running, all is well").wait_for()
        page.get_by_role("link", name="Timeline").first.click()
        page.get_by_label("Operation").select_option("unlink,rmdir")
        page.get_by_role("button", name="Show").click()
        page.get_by_role("button", name="Plan to take back all that the filter shows").click()
        page.get_by_role("heading", name="What it will do").wait_for()
        assert page.get_by_role("row").count() == 1 + 5
        page.get_by_role("button", name="Do it: 5 changes").click()
        page.get_by_role("heading", name="The way back from this").wait_for()
        assert page.locator("td .pill.good").all_inner_texts() == ["done"] * 5
        assert difference(was, image(tree)) == ""
        # What a button does, a command line that is shown beside it does, too.
        made = processes.run("console", "token", "create", "t", "--role", "operator", "--json")
        token = json.loads(made.stdout)["token"]
        back = _run_shown(page, "Plan to take it back", token)
        assert back["kind"] == "undo"
        assert _run_shown(page, "Remove this job from the list", token)["state"] == "removed"
        layer.stop()
        page.get_by_role("link", name="Overview").click()
        page.locator("div.note").get_by_text("no layer serves it").wait_for()
        look_at(page, "overview-ways")
        _run_shown(page, "Silence for a day", token)
        page.get_by_text("silenced by token t").wait_for()
        _run_shown(page, "Acknowledge", token)
        page.get_by_text("acknowledged by token t").wait_for()
        layer.start()


def _run_shown(page: Any, words: str, token: str) -> dict[str, Any]:
    """Returns the answer to the command line that is shown for the button *words*."""
    shown = page.locator("details.ways > div").filter(has=page.get_by_text(words, exact=True))
    line = shown.locator("code").text_content(timeout=60_000)
    environment = {**os.environ, "TOKEN": token}
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, check=True, timeout=60
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    assert "error" not in answer, answer
    return answer


def test_the_tree_before_a_change_and_odd_names(layer: Layer, processes: ConsoleProcesses) -> None:
    odd = layer.mountpoint / "odd"
    odd.mkdir()
    names = (b"bytes\xff\xfe", b"esc\x1b[31m", b"turned\xe2\x80\xaetxt", _MARKUP.encode())
    for name in names:
        with open(bytes(odd) + b"/" + name, "wb") as file:
            file.write(name)
    (odd / "last").write_text("")
    with browser_page(processes, "operator") as page:
        page.goto(f"{processes.url}#/v/hall/volume/browse?path=odd")
        page.get_by_role("heading", name="5 names").wait_for()
        shown = page.locator("tbody td:first-child").all_inner_texts()
        assert shown == [
            _MARKUP, "bytes\\xff\\xfe", "esc\\x1b[31m", "last", "turned\\u202etxt",
        ]  # fmt: skip
        page.get_by_role("button", name="Earlier").click()
        page.get_by_role("heading", name="4 names").wait_for()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download bytes\\xff\\xfe as it was").click()
        assert Path(download.value.path()).read_bytes() == names[0]
        page.get_by_role("link", name="History of esc").click()
        page.get_by_role("heading", name="The life of /odd/esc\\x1b[31m").wait_for()
        with page.expect_download() as download:
            page.goto(f"{processes.url}#/v/hall/volume/browse?path=odd")
            page.get_by_role("link", name="Download as tar").click()
        with tarfile.open(download.value.path()) as archive:
            assert "last" in archive.getnames()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download as zip").click()
        with zipfile.ZipFile(download.value.path()) as zipped:
            assert {"last", _MARKUP} <= set(zipped.namelist())
        (odd / "last").write_text("one\n")
        seq = layer.head_seq()
        (odd / "last").write_text("two\n")
        page.goto(f"{processes.url}#/v/hall/volume/changes?from={seq}")
        page.get_by_role("button", name="Lines of odd/last").click()
        page.get_by_text("+two").wait_for()
        look_at(page, "lines")
        page.keyboard.press("Escape")
        page.goto(f"{processes.url}#/v/hall/volume/timeline")
        page.locator("tbody tr").nth(9).wait_for()
        bar = page.locator(".bottom").bounding_box()
        assert bar["y"] + bar["height"] <= page.viewport_size["height"]  # it stays in sight
        page.get_by_label("Wrote at least").fill("0.007 KiB")
        page.get_by_role("button", name="Show").click()
        page.get_by_text("That is all: 4 shown.").wait_for()
        assert page.get_by_role("button", name="Plan to take back all").count() == 0
        look_at(page, "timeline-sizes")
        page.get_by_label("Mark this point with the name").fill("here")
        page.get_by_role("button", name="Mark this point").click()
        page.get_by_text("Marked as entry").wait_for()


def test_a_viewer_on_a_phone_whose_session_ends(layer: Layer, processes: ConsoleProcesses) -> None:
    (layer.mountpoint / "file").write_text("content")
    os.setxattr(layer.mountpoint / "file", "user.note", b"for anna alone")
    with browser_page(processes, "viewer", viewport={"width": 390, "height": 844}) as page:
        for view in ("", "v/hall/volume/timeline", "v/hall/volume/browse", "jobs"):
            page.goto(f"{processes.url}#/{view}")
            page.wait_for_load_state("networkidle" if view == "jobs" else "load")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.goto(f"{processes.url}#/v/hall/volume/browse")
        page.get_by_role("link", name="History of file").wait_for()
        assert page.get_by_text("Download").count() == 0
        assert page.get_by_role("button", name="Restore").count() == 0
        # Of an attribute that a user has set its name, and not its value.
        page.goto(f"{processes.url}#/v/hall/volume/timeline")
        page.locator("tr", has_text="setxattr").get_by_role("button").first.click()
        entry = page.get_by_role("dialog")
        entry.get_by_text("user.note").wait_for()
        entry.get_by_text("its value is shown to operators").wait_for()
        assert "for anna alone" not in page.content()
        look_at(page, "entry-of-viewer")
        page.keyboard.press("Escape")
        processes.run("console", "user", "remove", "anna")
        page.get_by_role("heading", name="Log in").wait_for(timeout=15_000)
