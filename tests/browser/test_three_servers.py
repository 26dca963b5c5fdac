"""The admin's day: three servers, each in a network of its own with its agent, and the console and
the browser in a fourth. From the alert of a tree that a user removed to the tree as it was, by
clicks alone, while another server is lost and the console is started anew."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.browser import await_state, browser_page, look_at, needs_browser
from tests.support.console_processes import PASSWORD, ConsoleProcesses
from tests.support.layer import Layer
from tests.support.network import Host, network
from tests.support.trees import difference, image

pytestmark = [pytest.mark.mount, needs_browser]
_ODD = (b'it\'s "so" & so', b"<img src=x onerror=alert(1)>", b"esc\x1b[31m", b"bytes\xff\xfe")
_FILES = 12
_MANY = 1200


class _Server:
    """One server: a layer, and its agent in a network of its own."""

    def __init__(self, layer: Layer, host: Host, agent: ConsoleProcesses) -> None:
        self.layer = layer
        self.host = host
        self.agent = agent


class _Office:
    """The console, and the three servers by name."""

    def __init__(self, console: ConsoleProcesses, servers: dict[str, _Server]) -> None:
        self.console = console
        self.servers = servers


@pytest.fixture
def office(tmp_path: Path) -> Iterator[_Office]:
    with ExitStack() as stack:
        net = stack.enter_context(network())
        here = stack.enter_context(Layer(tmp_path / "office"))
        (tmp_path / "said").mkdir()
        console = ConsoleProcesses(here, tmp_path / "said", net.host().namespace)
        stack.callback(console.kill)
        servers = {}
        for name in ("east", "north", "west"):
            layer = stack.enter_context(Layer(tmp_path / name)).start()
            host = net.host()
            (tmp_path / f"said-{name}").mkdir()
            agent = ConsoleProcesses(layer, tmp_path / f"said-{name}", host.namespace, host.address)
            stack.callback(agent.kill)
            servers[name] = _Server(layer, host, agent)
        _fill(servers["east"].layer.mountpoint)
        for name, server in servers.items():
            server.agent.start_agent("--mass-files", "10")
            server.agent.pair(name, console)
        console.start_console()
        yield _Office(console, servers)
        for stopped in (console, *(server.agent for server in servers.values())):
            stopped.stop()
        for server in servers.values():
            server.layer.stop()


def _fill(root: Path) -> None:
    tree = root / "project"
    (tree / "sub").mkdir(parents=True)
    for number in range(_FILES):
        (tree / f"sub/plan{number}.txt").write_text(f"content of {number}")
    for name in _ODD:
        with open(bytes(tree) + b"/" + name, "wb") as file:
            file.write(name)
    (root / "many").mkdir()
    for number in range(_MANY):
        (root / "many" / f"file{number:04}").write_text("")


def test_from_the_alert_to_the_tree_as_it_was(office: _Office) -> None:
    console, servers = office.console, office.servers
    east, west = servers["east"], servers["west"]
    root = east.layer.mountpoint
    was = image(root / "project")
    with browser_page(console, "operator", expected=("502", "ERR_")) as page:
        page.get_by_text("All is well: 3 volumes on 3 servers.").wait_for()
        look_at(page, "overview")
        shutil.rmtree(root / "project")
        alert = page.locator("div.note.bad").filter(has_text=re.compile("removed .* files and"))
        alert.wait_for(timeout=60_000)
        # In the middle of it, a server is lost.
        west.host.cut()
        away = page.get_by_role("region", name="west")
        away.get_by_text("not reached").wait_for(timeout=60_000)
        away.get_by_text(re.compile(r"as it was \d+ s ago")).wait_for()
        page.locator("div.note.bad").get_by_text("cannot be reached").wait_for()
        assert page.get_by_role("region", name="north").get_by_text("all is well").count() == 1
        look_at(page, "overview-alerts")
        away.get_by_role("link", name="Browse").click()
        page.get_by_role("alert").wait_for()
        look_at(page, "browse-away")
        page.get_by_role("link", name="Overview").click()
        alert.get_by_role("link", name="See what was removed").click()
        page.get_by_role("heading", name="Entries", exact=True).wait_for()
        page.get_by_text(re.compile("That is all: 18 shown")).wait_for()
        look_at(page, "timeline-filtered")
        # And the console is started anew: who is logged in is asked once more, and is back here.
        console.kill_console()
        page.get_by_text("The console does not answer").wait_for(timeout=60_000)
        look_at(page, "console-away")
        console.start_console()
        page.get_by_role("heading", name="Log in").wait_for(timeout=60_000)
        page.get_by_label("Name").fill("anna")
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Plan to take back all that the filter shows").click()
        page.get_by_role("heading", name="What it will do").wait_for()
        look_at(page, "job-undo-planned")
        page.get_by_role("button", name="Do it: 18 changes").click()
        page.get_by_role("heading", name="The way back from this").wait_for(timeout=60_000)
        await_state(page, "done")
        look_at(page, "job-undo")
        assert difference(was, image(root / "project")) == ""
        page.get_by_role("link", name="Recovery").click()
        page.get_by_role("link", name=re.compile("Take back")).wait_for()
        look_at(page, "jobs")
        page.get_by_role("region", name="west").get_by_text("It is not reached now").wait_for()
        west.host.mend()
        page.get_by_role("link", name="Overview").click()
        page.get_by_role("region", name="west").get_by_text("all is well").wait_for(timeout=60_000)


def test_long_lists_and_odd_names(office: _Office) -> None:
    root = office.servers["east"].layer.mountpoint
    with browser_page(office.console, "admin") as page:
        page.get_by_role("region", name="east").get_by_role("link", name="Browse").click()
        page.get_by_role("link", name="many", exact=True).click()
        page.get_by_role("heading", name="1,200 names").wait_for()
        assert page.locator("tbody tr").count() == 1000
        page.get_by_role("button", name="More", exact=True).click()
        page.get_by_role("link", name="file1199", exact=True).wait_for()
        assert page.locator("tbody tr").count() == _MANY
        page.get_by_role("link", name="volume", exact=True).click()
        page.get_by_role("link", name="project", exact=True).click()
        page.get_by_role("heading", name="5 names").wait_for()
        look_at(page, "browse-odd")
        page.get_by_role("link", name="History of esc").click()
        page.get_by_role("heading", name="The life of /project/esc\\x1b[31m").wait_for()
        look_at(page, "life")
        page.locator("tbody button.plain").first.click()
        page.get_by_role("heading", name=re.compile("^Entry ")).wait_for()
        look_at(page, "entry")
        page.keyboard.press("Escape")
        page.get_by_role("link", name="Timeline").click()
        page.locator("tbody tr").nth(99).wait_for()
        page.mouse.wheel(0, 100_000)
        page.locator("tbody tr").nth(150).wait_for()
        (root / "later").write_text("x")
        page.get_by_role("link", name="/later").first.wait_for()
        page.get_by_role("link", name="Audit").click()
        page.get_by_role("cell", name="password chosen").wait_for()
        look_at(page, "audit")
