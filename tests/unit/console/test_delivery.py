"""Alerts and their delivery, to real receivers on the loopback: once for a cause, again when it
came back, tried again after a failure, and never more often than is allowed."""

import json
import os
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fusejournal.console import delivery, watch
from fusejournal.console.agents import AgentBook, Agents, KnownAgent
from fusejournal.console.alerts import Alerts
from fusejournal.console.channels import (
    AlertCommand,
    CommandConfig,
    DeliveryError,
    Mail,
    MailConfig,
    Webhook,
    WebhookConfig,
    load_channels,
    message_of,
)
from fusejournal.console.delivery import AlertDelivery
from fusejournal.console.last_seen import LastSeen
from fusejournal.console.watch import Watch
from fusejournal.errors import ConfigError, UsageError
from fusejournal.wire.identity import load_or_make
from tests.support.pairs import until
from tests.support.patience import PATIENCE_SECONDS

_PROBLEM = {
    "key": "hall/data/failed", "words": "read-only: <b>\x1b[31m\udcff", "severity": "bad",
    "advice": "look", "agent": "hall", "volume": "data",
}  # fmt: skip


@contextmanager
def _hook(status: list[int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver of webhooks, which answers with *status*, one after the other, and the last again
    and again; its address, and what it got."""
    got: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append({**json.loads(body), "secret": self.headers.get("x-secret")})
            answer = status.pop(0) if len(status) > 1 else status[0]
            self.send_response(answer)
            if answer == 302:
                self.send_header("location", "http://127.0.0.1:1/")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _webhook(url: str, **config: Any) -> Webhook:
    raw = {"url": url, "headers": {"x-secret": "s"}, "after_seconds": 0.0, **config}
    return Webhook("ops", WebhookConfig.model_validate(raw))


async def test_a_cause_is_told_once_and_its_end_too(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    with _hook([200]) as (url, got):
        channels = [_webhook(url)]
        told = AlertDelivery(channels, tmp_path / "told.json")
        for _ in range(3):
            await told.deliver(alerts.update([_PROBLEM]))
        # A console that starts anew knows what was told.
        told = AlertDelivery(channels, tmp_path / "told.json")
        await told.deliver(Alerts(tmp_path / "alerts.json").update([_PROBLEM]))
        await told.deliver(alerts.update([]))
        await told.deliver(alerts.update([]))
        assert [(len(one["alerts"]), len(one["resolved"])) for one in got] == [(1, 0), (0, 1)]
        assert got[0]["secret"] == "s"
        assert got[0]["subject"] == "fusejournal: data on hall: read-only: <b>?[31m?"
        # One that flaps is not told each time,
        await told.deliver(alerts.update([_PROBLEM]))
        await told.deliver(alerts.update([]))
        assert len(got) == 2
        # and is told when it stays.
        alerts.update([_PROBLEM])
        for one in (told._told["webhook ops"][_PROBLEM["key"]], alerts._known[_PROBLEM["key"]]):
            for key in ("gone_ns", "since_ns"):
                if key in one:
                    one[key] -= 601 * 10**9
        await told.deliver(alerts.update([_PROBLEM]))
        assert len(got) == 3


async def test_a_key_that_is_made_otherwise_ends_the_alert_of_before(tmp_path: Path) -> None:
    """Nothing stays open under a key that no agent reports, as one that was upgraded does not."""
    alerts, renamed = Alerts(tmp_path / "alerts.json"), {**_PROBLEM, "key": "hall/data/fenced"}
    with _hook([200]) as (url, got):
        told = AlertDelivery([_webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update([_PROBLEM]))
        for _ in range(2):
            await told.deliver(alerts.update([renamed]))
        assert [one["key"] for one in got[1]["alerts"]] == [renamed["key"]]
        assert [one["key"] for one in got[1]["resolved"]] == [_PROBLEM["key"]]
        assert len(got) == 2
    assert [one["key"] for one in Alerts(tmp_path / "alerts.json").update([renamed])] == [
        renamed["key"]
    ]


async def test_who_knows_of_it_is_not_told(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    other = {**_PROBLEM, "key": "hall/data/lag", "severity": "warning"}
    both = [_PROBLEM, other]
    alerts.update(both)
    alerts.act(_PROBLEM["key"], "acknowledge", "anna", 0)
    alerts.act(other["key"], "silence", "anna", 2)
    found = Alerts(tmp_path / "alerts.json").update(both)
    assert found[0]["acknowledged"]["user"] == "anna"
    assert found[1]["silenced"]["until_ns"] > time.time_ns() + 7000 * 10**9
    with _hook([200]) as (url, got):
        told = AlertDelivery([_webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update(both))
        assert got == []
        alerts.act(other["key"], "unsilence", "anna", 0)
        bad = AlertDelivery([_webhook(url, severity="bad")], tmp_path / "told.json")
        await bad.deliver(alerts.update(both))
        assert got == []
        await told.deliver(alerts.update(both))
        assert [one["key"] for one in got[0]["alerts"]] == [other["key"]]
        await told.deliver(alerts.update([_PROBLEM, {**other, "severity": "bad"}]))
        assert got[1]["severity"] == "bad"  # it has become worse
    for action, hours in (("silence", 0), ("silence", 1 << 40), ("forget", 1)):
        with pytest.raises(UsageError):
            alerts.act(other["key"], action, "anna", hours)
    with pytest.raises(UsageError, match="no such alert"):
        alerts.act("other", "acknowledge", "anna", 0)


async def test_failures_are_tried_again_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_RETRY_SECONDS", 0.05)
    alerts = Alerts(tmp_path / "alerts.json")
    with _hook([500, 302, 200]) as (url, got):
        told = AlertDelivery([_webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update([_PROBLEM]))
        await told.deliver(alerts.update([_PROBLEM]))
        assert (len(got), told.to_json()[0]["error"]) == (1, "webhook ops: answered 500")
        await trio.sleep(0.06)
        await told.deliver(alerts.update([_PROBLEM]))
        assert told.to_json()[0]["error"] == "webhook ops: answered 302"  # and it does not follow
        await trio.sleep(0.11)
        await told.deliver(alerts.update([_PROBLEM]))
        assert (len(got), told.to_json()[0]["error"]) == (3, None)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    caplog.clear()


async def test_a_channel_is_not_used_too_often(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    with _hook([200]) as (url, got):
        told = AlertDelivery([_webhook(url, per_hour=2)], tmp_path / "told.json")
        problems = [{**_PROBLEM, "key": f"hall/data/{number}"} for number in range(60)]
        for count in (1, 2, 30, 60):
            await told.deliver(alerts.update(problems[:count]))
        assert [len(one["alerts"]) for one in got] == [1, 1]
        with pytest.raises(UsageError, match="as often as it may"):
            await told.send_test("webhook ops")
        with pytest.raises(UsageError, match="no channel"):
            await told.send_test("webhook other")
        # What waited comes in one.
        told = AlertDelivery([_webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update(problems))
        assert len(got[2]["alerts"]) == 58
        assert "and 8 more" in got[2]["text"]
        await told.send_test("webhook ops")
        assert "this channel works" in got[3]["text"]


async def test_what_does_not_last_is_not_told(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    with _hook([200]) as (url, got):
        told = AlertDelivery([_webhook(url, after_seconds=60.0)], tmp_path / "told.json")
        await told.deliver(alerts.update([_PROBLEM]))
        await told.deliver(alerts.update([]))
        assert got == []


async def test_one_channel_that_fails_oddly_ends_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alerts = Alerts(tmp_path / "alerts.json")
    odd = AlertCommand(
        "page", CommandConfig.model_construct(argv=["/bin/tr\0ue"], after_seconds=0.0)
    )
    with _hook([200]) as (url, got):
        told = AlertDelivery([odd, _webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update([_PROBLEM]))
        errors = [one["error"] for one in told.to_json()]
        assert errors == ["command page: failed with ValueError", None]
        with pytest.raises(DeliveryError, match="failed with ValueError"):
            await told.send_test("command page")
        # What was told is on the disk.
        told = AlertDelivery([_webhook(url)], tmp_path / "told.json")
        await told.deliver(alerts.update([_PROBLEM]))
        assert len(got) == 1
        # A problem without what a message needs, as an agent of another version may name one.
        bare = {"key": "hall/data/new", "severity": "bad"}
        await told.deliver(alerts.update([bare]))
        assert told.to_json()[0]["error"] == "webhook ops: failed with KeyError"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    caplog.clear()


@contextmanager
def _dripping() -> Iterator[str]:
    """A receiver of webhooks that answers a byte now and then, without end; its address."""
    over = threading.Event()

    class Dripper(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            with suppress(OSError):
                while not over.wait(0.02):
                    self.request.sendall(b"x")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            over.set()
            server.shutdown()
            thread.join()


async def test_a_channel_that_drips_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_SEND_SECONDS", 0.3)
    monkeypatch.setattr(delivery, "_RETRY_SECONDS", 0.0)
    alerts = Alerts(tmp_path / "alerts.json")
    other = {**_PROBLEM, "key": "hall/data/lag"}
    with _hook([200]) as (url, got), _dripping() as slow_url:
        slow = Webhook("slow", WebhookConfig.model_validate({"url": slow_url, "after_seconds": 0}))
        told = AlertDelivery([slow, _webhook(url)], tmp_path / "told.json")
        with trio.fail_after(PATIENCE_SECONDS):
            await told.deliver(alerts.update([_PROBLEM]))
        assert told.to_json()[0]["error"] == "webhook slow: not done within 0.3 s"
        assert len(got) == 1
        monkeypatch.setattr(delivery, "_SEND_SECONDS", 60.0)
        async with trio.open_nursery() as nursery:
            told.begin(nursery, alerts.update([_PROBLEM, other]))
            with trio.fail_after(PATIENCE_SECONDS):
                await until("it is told", lambda: not told._states["webhook ops"].is_busy)
                told.begin(nursery, alerts.update([_PROBLEM]))  # while the slow one still sends
                await until("it is told", lambda: not told._states["webhook ops"].is_busy)
            assert told._states["webhook slow"].is_busy
            nursery.cancel_scope.cancel()
        assert [(len(one["alerts"]), len(one["resolved"])) for one in got[1:]] == [(1, 0), (0, 1)]
        # The threads that are left to themselves are bounded, too.
        monkeypatch.setattr(delivery, "_SEND_SECONDS", 0.1)
        for _ in range(3):
            await told.deliver(alerts.update([_PROBLEM]))
        assert told.to_json()[0]["error"] == "webhook slow: 4 messages to it still hang"
    assert all("webhook slow" in record.getMessage() for record in caplog.records)
    caplog.clear()


async def test_the_watch_goes_on_where_it_cannot_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_DELIVERY_SECONDS", 0.01)
    book = AgentBook(tmp_path / "agents.json")
    book.put(KnownAgent("hall", "127.0.0.1:1", "none"))
    # Whatever the error: here, of a bug.
    alerts = Alerts(tmp_path / "alerts.json")
    alerts._known = {"hall//unreachable": {"since_ns": "x"}}
    command = AlertCommand("page", CommandConfig(argv=["/bin/true"]))
    agents = Agents(book, load_or_make(tmp_path / "identity", "console"))
    told, seen = AlertDelivery([command], tmp_path / "told.json"), LastSeen(tmp_path / "seen.json")
    looking = Watch(agents, alerts, told, seen)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(looking.run)
            await until("it looks again", lambda: len(caplog.records) >= 2)
            nursery.cancel_scope.cancel()
    assert "alerts are not looked for: failed with TypeError" in caplog.records[0].getMessage()
    caplog.clear()


class _MailServer(socketserver.StreamRequestHandler):
    """Takes one mail."""

    mails: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        is_data, lines = False, []
        for raw in self.rfile:
            line = raw.decode().rstrip("\r\n")
            if is_data:
                is_data = line != "."
                lines.append(line)
                if not is_data:
                    self.mails.append("\n".join(lines))
                    self.wfile.write(b"250 taken\r\n")
            elif line.upper() == "DATA":
                is_data = True
                self.wfile.write(b"354 go on\r\n")
            else:
                self.wfile.write(b"221 bye\r\n" if line.upper() == "QUIT" else b"250 ok\r\n")
            if line.upper() == "QUIT":
                return


def test_a_mail_and_a_command(tmp_path: Path) -> None:
    message = message_of([_PROBLEM], [])
    _MailServer.mails = []
    with socketserver.TCPServer(("127.0.0.1", 0), _MailServer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        raw = {"to": ["a@b.example"], "from": "c@d.example", "host": "127.0.0.1"}
        config = {**raw, "port": server.server_address[1]}
        Mail("admins", MailConfig.model_validate(config)).send(message)
        thread.join()
    (mail,) = _MailServer.mails
    assert "Subject: fusejournal: data on hall" in mail
    assert "what to do: look" in mail
    with pytest.raises(DeliveryError, match="mail admins"):
        Mail("admins", MailConfig.model_validate(config)).send(message)

    out = tmp_path / "out"
    argv = [sys.executable, "-c", f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"]
    AlertCommand("page", CommandConfig(argv=argv)).send(message)
    assert json.loads(out.read_text())["alerts"][0]["key"] == _PROBLEM["key"]
    for wrong in ([sys.executable, "-c", "raise SystemExit('no')"], [str(tmp_path / "none")]):
        with pytest.raises(DeliveryError, match="command page"):
            AlertCommand("page", CommandConfig(argv=wrong)).send(message)


def test_the_file_of_channels(tmp_path: Path) -> None:
    path = tmp_path / "alerts.toml"
    assert load_channels(path) == []
    path.write_text(
        '[webhook.ops]\nurl = "https://x.example/"\nseverity = "bad"\n'
        '[mail.admins]\nto = ["a@b.example"]\nfrom = "c@d.example"\npassword = "p"\n'
        '[command.page]\nargv = ["/bin/true"]\n'
    )
    os.chmod(path, 0o644)
    with pytest.raises(ConfigError, match="others can read secrets"):
        load_channels(path)
    os.chmod(path, 0o600)
    assert [one.name for one in load_channels(path)] == [
        "webhook ops", "mail admins", "command page",
    ]  # fmt: skip
    for text, words in (
        ("x", "not TOML"),
        ("[webhook.a]\nurl = 1\n", "webhook.a.url"),
        ('[webhook.a]\nurl = "file:///etc/passwd"\n', "webhook.a.url"),
        ('[command.a]\nargv = ["x"]\nper_day = 1\n', "command.a.per_day"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_channels(path)
