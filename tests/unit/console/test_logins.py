"""Guesses at passwords are slowed, and no stranger keeps a user out by them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fusejournal.console.login_limits import LoginLimits, make_device_cookie
from fusejournal.console.users import AccessRole, ConsoleUser, UserBook
from tests.support.consoles import PASSWORD, RunningConsole, running_console

_ANNA = ConsoleUser("anna", "admin", "00", "ab12")


def _tries(
    limits: LoginLimits, count: int, host: str, cookie: str = "", *, name: str = "anna"
) -> int:
    """Returns how many of *count* tries at one time may be."""
    user = _ANNA if name == "anna" else None
    return sum(limits.take(name, host, user, cookie, 0.0) for _ in range(count))


def test_guesses_are_slowed() -> None:
    limits = LoginLimits()
    assert _tries(limits, 50, "stranger") == 10
    assert sum(limits.take("anna", "stranger", _ANNA, "", 3600.0) for _ in range(50)) == 10
    # Of many names from one address, and of one from many.
    limits = LoginLimits()
    assert sum(_tries(limits, 1, "other", name=f"user-{at}") for at in range(50)) == 20
    assert sum(_tries(limits, 5, f"host-{at}") for at in range(50)) == 100
    assert _tries(limits, 5, "host-99") == 0


def test_one_address_never_uses_up_a_name() -> None:
    limits = LoginLimits()
    passed = sum(limits.take("anna", "stranger", _ANNA, "", at * 1.0) for at in range(24 * 3600))
    assert passed < 24 * 120 + 20
    assert limits.take("anna", "elsewhere", _ANNA, "", 24 * 3600.0)


def test_where_a_user_has_logged_in_a_stranger_keeps_nobody_out() -> None:
    limits = LoginLimits()
    limits.note_login("anna", "at home")
    for at in range(50):
        _tries(limits, 10, f"host-{at}")
    assert _tries(limits, 1, "elsewhere") == 0
    assert _tries(limits, 50, "at home") == 10
    # Behind a proxy the stranger has the same address.
    cookie = make_device_cookie(_ANNA)
    assert _tries(limits, 50, "at home", cookie) == 10
    for wrong in (
        cookie + "0",
        make_device_cookie(ConsoleUser("anna", "admin", "00", "cd34")),
        "x",
    ):
        assert _tries(limits, 1, "elsewhere", wrong) == 0
    assert _tries(limits, 1, "at home", cookie, name="bert") == 1  # as without: it is not for bert


@asynccontextmanager
async def _from(console: RunningConsole, host: str) -> AsyncIterator[httpx.AsyncClient]:
    app = console.client._transport.app
    transport = httpx.ASGITransport(app, client=(host, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
        yield client


def _add(users: UserBook) -> None:
    assert users.choose_password("anna", users.add("anna", AccessRole.ADMIN).code, PASSWORD)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FUSEJOURNAL_STATE_ROOT", str(tmp_path / "volume"))
    (tmp_path / "volume").mkdir()
    return tmp_path


async def test_a_user_behind_the_proxy_of_a_stranger(root: Path) -> None:
    right, wrong = {"name": "anna", "password": PASSWORD}, {"name": "anna", "password": "x" * 12}
    async with running_console(root) as console:
        _add(console.users)
        async with _from(console, "proxy") as anna, _from(console, "proxy") as stranger:
            assert (await anna.post("/api/login", json=right)).status_code == 200
            found = [(await stranger.post("/api/login", json=wrong)).status_code for _ in range(12)]
            assert (found[0], found[-1]) == (403, 429)
            assert (await stranger.post("/api/login", json=right)).status_code == 429
            assert (await anna.post("/api/login", json=right)).status_code == 200


async def test_cookies_and_headers_of_tls(root: Path) -> None:
    async with running_console(root, is_tls=True) as console:
        _add(console.users)
        body = {"name": "anna", "password": PASSWORD}
        answer = await console.client.post("/api/login", json=body)
        made = answer.headers.get_list("set-cookie")
        assert [one.partition("=")[0] for one in made] == [
            "__Host-fusejournal_session", "__Host-fusejournal_device",
        ]  # fmt: skip
        for one in made:
            assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(one.split("; "))
            assert "Domain" not in one
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        described = await console.get("/api/openapi.json")
        scheme = described["components"]["securitySchemes"]["session"]
        assert scheme["name"] == "__Host-fusejournal_session"
        console.csrf = answer.json()["csrf"]
        await console.post("/api/logout")
        assert (await console.get("/api/session"))["name"] == ""
        assert "__Host-fusejournal_device" in console.client.cookies
    async with running_console(root) as console:
        answer = await console.client.post("/api/login", json=body)
        assert "strict-transport-security" not in answer.headers
        assert "Secure" not in str(answer.headers.get_list("set-cookie"))
