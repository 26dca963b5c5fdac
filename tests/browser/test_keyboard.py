"""The page by keyboard alone: every control of each view is reached, in order, and seen to have the
focus; dialogs keep it and give it back; what is drawn anew does not lose it. A slow tier by name:
see test_page.py."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import browser_page, needs_browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.layer import Layer
from tests.support.trees import difference, image

pytestmark = [pytest.mark.mount, needs_browser]
_PATIENCE_MS = 60_000
_STEPS_MAX = 300
_ACTING = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex]")]
  .filter((one) => one.tabIndex >= 0 && !one.disabled && one.checkVisibility())"""  # noqa: E501
_FOCUSED = f"""() => {{
  const one = document.activeElement, style = getComputedStyle(one), box = one.getBoundingClientRect();
  const [x, y] = [box.left + Math.min(box.width, innerWidth) / 2, box.top + box.height / 2];
  const top = document.elementFromPoint(x, y);
  const is_seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  return {{ at: ({_ACTING})().indexOf(one), words: one.getAttribute("aria-label") || one.name || one.innerText || one.nodeName,
    is_seen, is_on_top: one.type === "range" || one.contains(top) || Boolean(top?.contains(one)) }};
}}"""  # noqa: E501


@pytest.fixture
def processes(layer: Layer, tmp_path: Path) -> Iterator[ConsoleProcesses]:
    layer.start()
    tree = layer.mountpoint / "project"
    tree.mkdir()
    for number in range(8):
        (tree / f"file-{number}").write_text(f"content {number}\n")
    (tree / "file-0").write_text("another\n")
    layer.run("version", "store", "init", "volume", "--store", str(layer.base / "store"))
    layer.run("version", "create", "volume", "before")
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


def _walk(page: Any) -> list[str]:
    """Returns the words of the controls that Tab goes to, one after the other, from the top."""
    page.evaluate("document.querySelector('a.skip').focus()")
    count = len(page.evaluate(f"({_ACTING})().map(() => 1)"))
    reached = [page.evaluate(_FOCUSED)]
    while len(reached) < _STEPS_MAX:
        page.keyboard.press("Tab")
        found = page.evaluate(_FOCUSED)
        if found["at"] <= reached[-1]["at"]:
            break
        assert found["is_seen"], found
        assert found["is_on_top"], found
        reached.append(found)
    assert [one["at"] for one in reached] == list(range(count)), reached
    return [one["words"] for one in reached]


def _tab_to(page: Any, words: str) -> None:
    """Presses Tab until the control *words* has the focus."""
    for _ in range(_STEPS_MAX):
        page.keyboard.press("Tab")
        if page.evaluate(_FOCUSED)["words"].startswith(words):
            return
    raise AssertionError(f"{words} is not reached")


def _focused(page: Any) -> str:
    return str(page.evaluate(_FOCUSED)["words"])


def _await_focus(page: Any, words: str) -> None:
    """Returns once the control *words* has the focus."""
    page.wait_for_function(
        f"words => ({_FOCUSED})().words.startsWith(words)", arg=words, timeout=_PATIENCE_MS
    )


def _check_dialog(page: Any, opener: str) -> None:
    """Opens the dialog of *opener*, which has the focus, goes around in it, and leaves it."""
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("heading").first.wait_for()
    for key in ("Tab", "Shift+Tab"):
        for _ in range(12):
            page.keyboard.press(key)
            # (Past its last control is the browser's own.)
            where = page.evaluate("document.activeElement.closest('dialog, body').nodeName")
            is_body = page.evaluate("document.activeElement === document.body")
            assert where == "DIALOG" or is_body, _focused(page)
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert _focused(page) == opener


_VIEWS = (
    ("", "Overview"), ("v/hall/volume/timeline", "Entries"), ("jobs", "Recovery"),
    ("v/hall/volume/browse?path=project", "8 names"), ("v/hall/volume/changes", "volume on hall"),
    ("v/hall/volume/life?path=project/file-0", "The life of /project/file-0"),
    ("v/hall/volume/versions", "1 version"), ("v/hall/volume/roles", "volume on hall"),
    ("audit", "Audit"),
)  # fmt: skip


def test_by_keyboard_alone(layer: Layer, processes: ConsoleProcesses) -> None:
    with browser_page(processes, "admin") as page:
        for place, heading in _VIEWS:
            page.goto(f"{processes.url}#/{place}")
            page.get_by_role("heading", name=heading).first.wait_for()
            page.wait_for_timeout(500)  # until all of its parts have come
            words = _walk(page)
            assert words[:3] == ["Skip to the content", "fusejournal", "Overview"], place
            # The way past the head is none out of the view.
            page.evaluate("document.querySelector('a.skip').focus()")
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.id") == "main"
            assert page.url.endswith(f"#/{place}")
        _keep_the_focus(page, layer, processes.url)
        page.goto(f"{processes.url}#/")
        _take_a_tree_back(page, layer)


def _keep_the_focus(page: Any, layer: Layer, url: str) -> None:
    # The head, as the overview beside it changes.
    page.goto(f"{url}#/")
    page.get_by_role("article").wait_for()
    page.get_by_role("button", name="Log out").focus()
    was = page.evaluate("document.querySelector('article dl').innerText")
    (layer.mountpoint / "more").touch()
    page.wait_for_function(
        "was => document.querySelector('article dl').innerText !== was",
        arg=was,
        timeout=_PATIENCE_MS,
    )
    assert _focused(page) == "Log out"
    # Dialogs, of each kind.
    page.goto(f"{url}#/v/hall/volume/timeline")
    page.get_by_role("heading", name="Entries", exact=True).wait_for()
    page.locator("tbody button.plain").first.focus()
    _check_dialog(page, _focused(page))
    page.goto(f"{url}#/v/hall/volume/versions")
    page.get_by_role("button", name="Delete before").focus()
    _check_dialog(page, "Delete before")
    page.get_by_role("button", name="Protect before").focus()
    page.keyboard.press("Enter")
    _await_focus(page, "Protect no longer before")
    # What has drawn its own view anew.
    page.goto(f"{url}#/v/hall/volume/browse?path=project")
    page.get_by_label("Moment").focus()
    for _ in range(2):
        before = page.url
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("before => location.href !== before", arg=before)
        _await_focus(page, "Moment")
    page.get_by_role("button", name="Earlier").focus()
    page.keyboard.press("Enter")
    _await_focus(page, "◀ Earlier")
    # A mirror's code is given out in a second dialog, in place of the first.
    page.goto(f"{url}#/v/hall/volume/roles")
    page.get_by_role("button", name="Give out a code…").focus()
    _check_dialog(page, "Give out a code…")
    page.get_by_role("button", name="Pair by a code…").focus()
    _check_dialog(page, "Pair by a code…")


def _take_a_tree_back(page: Any, layer: Layer) -> None:
    tree = layer.mountpoint / "project"
    was = image(tree)
    shutil.rmtree(tree)
    _tab_to(page, "Timeline")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Entries", exact=True).wait_for()
    assert page.evaluate("document.activeElement.id") == "main"
    _tab_to(page, "op")
    page.keyboard.type("removals")
    _tab_to(page, "Show")
    page.keyboard.press("Enter")
    page.get_by_text("That is all: 9 shown").wait_for()
    _await_focus(page, "Show")
    _tab_to(page, "Plan to take back all that the filter shows")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="What it will do").wait_for()
    _tab_to(page, "Do it: 9 changes")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="The way back from this").wait_for()
    assert page.evaluate("document.activeElement !== document.body")
    assert difference(was, image(tree)) == ""
    assert "Plan to take it back" in _walk(page)
