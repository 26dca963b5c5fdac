"""Two nodes become peers by clicks alone, and one is paused and resumed. A slow tier by name: see
test_page.py."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import browser_page, look_at, needs_browser
from tests.support.console_processes import ConsoleProcesses, console_processes
from tests.support.mirrors import Node, await_level
from tests.support.network import network

pytestmark = [pytest.mark.mount, needs_browser]


_PICTURE = """async () => {
  const { shippingOf } = await import("/static/ships.js");
  const peer = (name, state, lag_entries) => ({ name, state, lag_entries });
  const node = (name, role, node, primary, ...peers) => ({ name, role, uuid: "u", replication: { node, peers, mirror: primary ? { primary } : null } });
  const picture = shippingOf([
    { name: "north", error: null, volumes: [node("far", "mirror", "n3", "n2")] },
    { name: "west", error: null, volumes: [node("copy", "mirror", "n2", "n1", peer("third", "connecting", 3))] },
    { name: "east", error: null, volumes: [node("data", "primary", "n1", null, peer("copy", "streaming", 0), peer("elsewhere", "paused", 9))] },
  ]);
  const read = (item) => [...item.children].flatMap((one) => one.tagName === "UL" ? [...one.children].map(read) : [one.innerText.trim()]);
  document.body.append(picture);
  const found = [...picture.querySelector("ul.ships").children].map(read);
  picture.remove();
  return found.length === 1 ? found[0] : found;
}"""  # noqa: E501
"""The picture of a primary that ships to two, of which one ships on."""


class _Two:
    """A primary on east and a mirror on west that do not know each other, and a console that knows
    both."""

    def __init__(self, stack: ExitStack, base: Path) -> None:
        net = stack.enter_context(network())
        self.primary, self.mirror = (
            stack.enter_context(Node(base / name, net.host(), role))
            for name, role in (("data", "primary"), ("copy", "mirror"))
        )
        for node in (self.primary, self.mirror):
            node.start()
        self.console = stack.enter_context(console_processes(self.primary, base / "said", "east"))
        (base / "said2").mkdir()
        self.other = ConsoleProcesses(self.mirror, base / "said2")
        stack.callback(self.other.kill)
        self.other.start_agent()
        self.other.pair("west", self.console)

    def view(self, agent: str, volume: str) -> str:
        """Returns the address of a node's view."""
        return f"{self.console.url}#/v/{agent}/{volume}/roles"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[_Two]:
    with ExitStack() as stack:
        yield _Two(stack, tmp_path)


def _give_code(page: Any) -> str:
    page.get_by_role("button", name="Give out a code…").click()
    look_at(page, "pair-ask")
    page.get_by_role("dialog").get_by_role("button", name="Give out a code", exact=True).click()
    page.get_by_role("heading", name="The code").wait_for()
    return str(page.locator(".code").inner_text())


def test_two_nodes_are_paired_and_one_is_paused(two: _Two) -> None:
    with browser_page(two.console, "admin", expected=("status of 400",)) as page:
        giving = page.context.new_page()
        giving.goto(two.view("west", "copy"))
        # A code that is taken back is good for nothing.
        taken_back = _give_code(giving)
        giving.keyboard.press("Escape")
        giving.get_by_text("The code was taken back").wait_for()
        # This dialog came in place of another one; the focus is back where that one was opened.
        assert giving.evaluate("document.activeElement.innerText") == "Give out a code…"
        code = _give_code(giving)
        assert code != taken_back
        look_at(giving, "pair-code")
        giving.get_by_text(f"{two.mirror.host.address}:7710 {code}").wait_for()

        page.goto(two.view("east", "data"))
        page.get_by_role("button", name="Pair by a code…").click()
        page.get_by_label("Call it").fill("cellar")
        page.get_by_label("Where it listens").fill(f"{two.mirror.host.address}:7710")
        page.get_by_label("The code that it gave out").fill(taken_back)
        page.get_by_role("button", name="Pair", exact=True).click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("The code that it gave out").fill(code)
        dialog = page.get_by_role("dialog")
        dialog.get_by_text(
            f"fusejournal pair data cellar={two.mirror.host.address}:7710 {code}"
        ).wait_for()
        look_at(page, "pair-use")
        page.get_by_role("button", name="Pair", exact=True).click()
        page.get_by_text("Paired with cellar").wait_for()
        giving.get_by_text("Paired with").wait_for()
        giving.get_by_role("button", name="Close").click()

        (two.primary.mountpoint / "file").write_text("content")
        await_level(two.primary, two.mirror)
        assert (two.mirror.mountpoint / "file").read_text() == "content"
        page.get_by_role("button", name="Pause cellar").click()
        page.get_by_role("dialog").get_by_text("fusejournal peer pause data cellar").wait_for()
        look_at(page, "peer-pause")
        page.get_by_role("button", name="Pause it").click()
        page.get_by_role("button", name="Resume cellar").wait_for()
        page.get_by_text("paused, ").wait_for()
        page.get_by_role("link", name="Overview").click()
        page.get_by_text("running, cellar paused").wait_for()
        page.locator(".way.soft").get_by_text("paused, ").wait_for()
        assert page.locator("div.note.bad").count() == 0
        look_at(page, "overview-paused")
        assert page.evaluate(_PICTURE) == [
            "data on east",
            ["streaming, level", "copy on west", ["connecting, 3 entries behind", "far on north"]],
            ["paused, 9 entries behind", "elsewhere"],
        ]
        page.go_back()
        look_at(page, "peers-paused")
        (two.primary.mountpoint / "later").write_text("content")
        page.get_by_role("button", name="Resume cellar").click()
        page.get_by_role("button", name="Ship to it again").click()
        page.get_by_role("button", name="Pause cellar").wait_for()
        await_level(two.primary, two.mirror)

        page.goto(f"{two.console.url}#/audit")
        page.get_by_role("cell", name="pair-with").first.wait_for()
        assert page.get_by_text(code).count() == 0
    lines = _audit_of(two)
    assert code not in lines
    assert taken_back not in lines
    for what in ("pair-open", "pair-close", "pair-with", "peer-pause", "peer-resume"):
        assert f'"what": "{what}"' in lines


def _audit_of(two: _Two) -> str:
    root = Path(two.console.environment["FUSEJOURNAL_STATE_ROOT"])
    return (root / ".console/audit.jsonl").read_text()
