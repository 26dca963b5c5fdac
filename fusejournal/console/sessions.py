"""Sessions of users who are logged in, and rates: in memory alone, so that a console that starts
anew has everybody log in again.

A session's token is only in the browser's cookie; here is its hash. It ends after an hour without a
request of its user, after twelve in any case, when the user logs out, is removed or gets another
role. What a page that is left open asks by itself is no request of a user."""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fusejournal.console.users import ConsoleUser

_IDLE_SECONDS: Final = 3600.0
_WHOLE_SECONDS: Final = 12 * 3600.0
_SESSIONS_MAX: Final = 1000
_KEYS_MAX: Final = 10_000


@dataclass
class WebSession:
    """One login. ``csrf`` is what each request that changes something must show, too."""

    name: str
    role: str
    csrf: str
    salt: str
    """The salt of the user's password, which each password has a new one of."""
    begun: float
    seen: float

    def is_csrf(self, given: str) -> bool:
        """Returns True if *given* is its secret."""
        return hmac.compare_digest(self.csrf.encode(), given.encode("utf-8", "replace"))


class Sessions:
    """All sessions. Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, WebSession] = OrderedDict()

    def begin(self, user: ConsoleUser, now: float) -> tuple[str, WebSession]:
        """Returns a new session and its token."""
        token = secrets.token_urlsafe(32)
        session = WebSession(user.name, user.role, secrets.token_urlsafe(32), user.salt, now, now)
        self._sessions[_hash(token)] = session
        while len(self._sessions) > _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return token, session

    def find(
        self, token: str, user_of: dict[str, ConsoleUser], now: float, *, is_poll: bool = False
    ) -> WebSession | None:
        """Returns the session with *token*, of a user who is still there with the same role and
        password; None where there is none any more. *is_poll*: the page asks by itself, which
        does not have the session last longer."""
        key = _hash(token)
        session = self._sessions.get(key)
        if session is None:
            return None
        user = user_of.get(session.name)
        is_over = now > session.seen + _IDLE_SECONDS or now > session.begun + _WHOLE_SECONDS
        is_other = user is None or (user.role, user.salt) != (session.role, session.salt)
        if is_over or is_other:
            del self._sessions[key]
            return None
        if not is_poll:
            session.seen = now
        return session

    def end(self, token: str) -> None:
        """Ends a session, if there is one."""
        self._sessions.pop(_hash(token), None)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class RateLimit:
    """Lets each key do something *count* times at once, and then once every *seconds*."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count = count
        self._seconds = seconds
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """The time from which on a key has all its times again."""

    def take(self, key: str, now: float) -> bool:
        """Returns True if *key* may; it has one time less then."""
        free_at = max(self._free_at.get(key, now), now)
        if free_at - now > (self._count - 1) * self._seconds:
            return False
        self._free_at[key] = free_at + self._seconds
        self._free_at.move_to_end(key)
        while len(self._free_at) > _KEYS_MAX:
            self._free_at.popitem(last=False)
        return True
