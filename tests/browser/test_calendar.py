"""The calendar of a volume's versions in a real browser: by mouse, by keyboard, on a phone, as a
viewer sees it. A slow tier by name: see test_page.py."""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fusejournal.admin.retention import PolicyForecast, find_retention
from tests.support.browser import browser_page, look_at, needs_browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.dated_versions import make_dated_versions
from tests.support.layer import Layer

pytestmark = [pytest.mark.mount, needs_browser]
_DAY_NS = 86_400 * 10**9
_POLICY = (
    "[versions]\nevery = '6h'\nprune_every = '1d'\nkeep_last = 2\nkeep_daily = 5\nkeep_weekly = 3\n"
)
_DAYS_AGO = {
    40: "", 33: "before-upgrade", 19: "", 12: "", 9: "", 6: "", 5: "", 4: "<b>odd</b>", 3: "",
    2: "", 1: "",
}  # fmt: skip
"""The versions that there are: how many days old, and their names."""


@pytest.fixture
def processes(
    layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ConsoleProcesses]:
    root, etc = Path(layer.environment["FUSEJOURNAL_STATE_ROOT"]), tmp_path / "etc"
    for directory in (root, etc):
        directory.mkdir(exist_ok=True)
    (etc / "dated.toml").write_text(_POLICY)
    layer.environment["FUSEJOURNAL_CONFIG_ROOT"] = str(etc)
    for name in ("FUSEJOURNAL_STATE_ROOT", "FUSEJOURNAL_CONFIG_ROOT"):
        monkeypatch.setenv(name, layer.environment[name])
    noon_ns = time.time_ns() // _DAY_NS * _DAY_NS + _DAY_NS // 2
    times = {noon_ns - age * _DAY_NS: name for age, name in _DAYS_AGO.items()}
    make_dated_versions(root, tmp_path / "store-of-dated", times)
    layer.reconfigure(_POLICY)
    layer.start()
    layer.run("version", "store", "init", "volume", "--store", str(tmp_path / "store"))
    with console_processes(layer, tmp_path / "said") as processes:
        yield processes
    layer.stop()


def _words(day: datetime) -> str:
    return f"{day:%A}, {day.day} {day:%B %Y}"


def _day(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 10**9, UTC)


def _expected(found: PolicyForecast, day: datetime) -> str:
    """Returns what the calendar says of a day."""
    ones = [one for one in found.versions if _day(one.version.time_ns).date() == day.date()]
    going = [
        one for one in found.versions if one.let_go_ns and _day(one.let_go_ns).date() == day.date()
    ]
    parts = []
    if ones:
        parts.append(f"{len(ones)} version" + ("s" if len(ones) > 1 else ""))
    if going:
        parts.append(f"{len(going)} let go")
    return ", ".join(parts) or "nothing"


def test_each_version_is_on_its_day(processes: ConsoleProcesses) -> None:
    found = find_retention("dated")
    today = datetime.now(UTC)
    with browser_page(processes, "viewer", timezone_id="Pacific/Auckland") as page:
        page.goto(f"{processes.url}#/v/hall/dated/versions")
        grid = page.get_by_role("grid")
        grid.wait_for()
        look_at(page, "versions-calendar")
        # By the keyboard alone, from today: each day, a week, and a month.
        chosen = grid.get_by_role("gridcell", selected=True).get_by_role("button")
        chosen.focus()
        for age in range(1, 8):
            page.keyboard.press("ArrowLeft")
            day = today - timedelta(days=age)
            label = chosen.get_attribute("aria-label")
            assert label == f"{_words(day)}: {_expected(found, day)}", age
            assert chosen.evaluate("one => one === document.activeElement")
            page.get_by_role("region", name=_words(day)).wait_for()
        page.keyboard.press("ArrowDown")
        page.get_by_role("region", name=_words(today)).wait_for()
        page.keyboard.press("PageUp")
        month = today.replace(day=1) - timedelta(days=1)
        page.get_by_role("heading", name=f"{month:%B %Y}", exact=True).wait_for()
        page.keyboard.press("PageDown")
        page.keyboard.press("Home")
        monday = today - timedelta(days=today.weekday())
        page.get_by_role("region", name=_words(monday)).wait_for()
        page.get_by_role("button", name="Next month").click()
        page.get_by_role("button", name="Today").click()
        # What has a name stays; the day says so, and leads to the version.
        named = today - timedelta(days=33)
        months = (today.year - named.year) * 12 + today.month - named.month
        for _ in range(months):
            page.get_by_role("button", name="Previous month").click()
        grid.get_by_role("button", name=f"{_words(named)}:").click()
        region = page.get_by_role("region", name=_words(named))
        region.get_by_text("stays, whatever is made after it").wait_for()
        look_at(page, "versions-calendar-day")
        region.get_by_role("link", name="before-upgrade").click()
        page.get_by_role("heading", name="Version before-upgrade as of").wait_for()


def test_what_is_let_go_and_what_is_due(processes: ConsoleProcesses) -> None:
    found = find_retention("dated")
    last = max(one.let_go_ns for one in found.versions if one.let_go_ns)
    day, now = _day(last), datetime.now(UTC)
    with browser_page(processes, "viewer", viewport={"width": 390, "height": 844}) as page:
        page.goto(f"{processes.url}#/v/hall/dated/versions")
        grid = page.get_by_role("grid")
        grid.wait_for()
        for _ in range((day.year - now.year) * 12 + day.month - now.month):
            page.get_by_role("button", name="Next month").click()
        grid.get_by_role("button", name=f"{_words(day)}:").click()
        region = page.get_by_role("region", name=_words(day))
        region.get_by_role("heading", name="Let go on this day").wait_for()
        assert region.get_by_text("let go on").count() >= 1
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # A layer that runs has a schedule.
        page.goto(f"{processes.url}#/v/hall/volume/versions")
        page.get_by_role("grid").wait_for()
        facts = page.locator("dl.facts").filter(has_text="next pruning").inner_text()
        assert re.search(r"next version\s.* UTC, in .*; every 6 h by the schedule", facts), facts
        assert re.search(r"next pruning\s.* UTC, in .*; every 1 d by the schedule", facts), facts
        look_at(page, "versions-calendar-due")
