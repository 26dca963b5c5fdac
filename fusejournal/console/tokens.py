"""API tokens, for scripts: each with a role, perhaps for some volumes alone, and an end.

A token is shown once, when it is made; here is its hash. It has 256 random bits, so that a quick
hash keeps it as well as a slow one would. The file is read anew when it has changed, so that
``console token`` works beside a console that runs: one that is revoked is refused at the next
request."""

import hashlib
import secrets
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from fusejournal.address import check_peer_name
from fusejournal.console.record_books import RecordBook
from fusejournal.console.users import AccessRole, parse_access_role
from fusejournal.control.reply import Reply
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.disk.json_records import checked
from fusejournal.errors import UsageError

_PREFIX: Final = "fjt_"
_DAY_SECONDS: Final = 86400
DAYS_MAX: Final = 3660


@dataclass(frozen=True)
class ApiToken:
    """One token. Times are seconds since 1970; ``volumes``: AGENT/VOLUME, or patterns of them;
    empty: all, and what is no volume's. ``hash`` is the token's SHA-256."""

    name: str
    role: str
    hash: str
    made: float
    expires: float
    volumes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns what ``console token list --json`` prints: not the hash."""
        return {
            "name": self.name, "role": self.role, "volumes": list(self.volumes),
            "made": self.made, "expires": self.expires,
        }  # fmt: skip

    @property
    def access(self) -> AccessRole:
        """The role."""
        return parse_access_role(self.role)

    def is_for(self, agent: str, volume: str) -> bool:
        """Returns True if it is good for this volume."""
        place = f"{agent}/{volume}"
        return not self.volumes or any(fnmatchcase(place, one) for one in self.volumes)


@dataclass(frozen=True, kw_only=True)
class TokenMade(Reply):
    """A token that was made, which is shown this once."""

    name: str
    role: str
    token: str


class TokenBook(RecordBook[ApiToken]):
    """The tokens in one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "tokens")

    def _record_of(self, raw: dict[str, Any]) -> ApiToken:
        token = checked(ApiToken(**{**raw, "volumes": tuple(raw["volumes"])}))
        if token.role.upper() not in AccessRole.__members__:
            raise ValueError("a role that is none")
        return token

    def _write(self, content: bytes) -> None:
        write_atomically("console.tokens", self._path, content, Outlives.MACHINE)

    def create(self, name: str, role: AccessRole, days: int, volumes: tuple[str, ...]) -> str:
        """Makes a token, and returns it, this once. Raises UsageError, also where there is one of
        that name; FusejournalError, OSError."""
        check_peer_name(name)
        if not 0 < days <= DAYS_MAX:
            raise UsageError(f"a token is good for 1 to {DAYS_MAX} days")
        for one in volumes:
            if one.count("/") != 1 or one.startswith("/") or one.endswith("/"):
                raise UsageError(f"{one!r} names no volume: say AGENT/VOLUME, or 'AGENT/*'")
        text, now = _PREFIX + secrets.token_urlsafe(32), time.time()
        made = ApiToken(name, role.label, _hash(text), now, now + days * _DAY_SECONDS, volumes)
        with self._changing() as tokens:
            if name in tokens:
                raise UsageError(f"there is a token {name!r} already: revoke it first")
            tokens[name] = made
        return text

    def revoke(self, name: str) -> None:
        """Forgets a token. Raises UsageError where there is none, FusejournalError, OSError."""
        with self._changing() as tokens:
            if name not in tokens:
                raise UsageError(f"there is no token {name!r}: 'fusejournal console token list'")
            del tokens[name]

    def find(self, text: str) -> ApiToken | None:
        """Returns the token that *text* is, unless it has expired. Raises FusejournalError."""
        given, now = _hash(text), time.time()
        return next(
            (one for one in self.all().values() if one.hash == given and now < one.expires), None
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
