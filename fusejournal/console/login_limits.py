"""Limits of logins: how often one may be tried.

Guesses are slowed, by name, by address and by both together; no stranger's guesses keep a user out
who comes from where they have logged in before: from a browser that has the cookie of that (behind
a proxy all come from one address), or from the address.

The cookie of a browser is signed by what the user's password became, so that it is void with the
password, outlives a new start of the console, and needs no state of its own.

Source: OWASP, "Slow Down Online Guessing Attacks with Device Cookies"."""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from typing import Final

from fusejournal.console.sessions import RateLimit
from fusejournal.console.users import ConsoleUser

_KNOWN_MAX: Final = 10_000
_NONCE_CHARS_MAX: Final = 64


def make_device_cookie(user: ConsoleUser) -> str:
    """Returns a cookie for a browser in which *user* has logged in."""
    nonce = secrets.token_urlsafe(16)
    return f"{nonce}.{_signature(user, nonce)}"


def _device_of(user: ConsoleUser | None, cookie: str) -> str | None:
    """Returns what is one browser's alone in its *cookie*; None for one that is not for *user*."""
    nonce, _, signature = cookie.partition(".")
    if user is None or not user.password or len(nonce) > _NONCE_CHARS_MAX:
        return None
    given = signature.encode("utf-8", "replace")
    return nonce if hmac.compare_digest(_signature(user, nonce).encode(), given) else None


def _signature(user: ConsoleUser, nonce: str) -> str:
    text = f"device {user.name} {nonce}".encode("utf-8", "replace")
    return hmac.new(user.password.encode(), text, hashlib.sha256).hexdigest()


class LoginLimits:
    """The tries there were, in memory alone. Times are seconds of a clock that only goes
    forward."""

    def __init__(self) -> None:
        self._of_device = RateLimit(10, 30.0)
        self._of_name_and_host = RateLimit(10, 30.0)
        self._of_host = RateLimit(20, 6.0)
        # (Looser than the one before, so that one address alone never uses it up.)
        self._of_name = RateLimit(100, 15.0)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        """The names with the addresses from where they have logged in."""

    def take(self, name: str, host: str, user: ConsoleUser | None, cookie: str, now: float) -> bool:
        """Returns True if a login as *name* may be tried, which counts as one. *user*: the one of
        that name, if there is one; *cookie*: that of the browser, or "" without any."""
        device = _device_of(user, cookie)
        if device is not None:
            return self._of_device.take(f"{name}\n{device}", now)
        return (
            self._of_name_and_host.take(f"{name}\n{host}", now)
            and self._of_host.take(host, now)
            and ((name, host) in self._known or self._of_name.take(name, now))
        )

    def note_login(self, name: str, host: str) -> None:
        """Notes that the user *name* has logged in from *host*."""
        self._known[name, host] = None
        self._known.move_to_end((name, host))
        while len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
