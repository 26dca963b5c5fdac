"""API tokens, for scripts: each with a role, perhaps for some volumes alone, and an end.

A token is shown once, when it is made; here is its hash. It has 256 random bits, so that a quick
hash keeps it as well as a slow one would. The file is read anew when it has changed, so that
``console token`` works beside a console that runs: one that is revoked is refused at the next
request."""

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from fusejournal.address import check_peer_name
from fusejournal.console.users import AccessRole, parse_access_role
from fusejournal.control.reply import Reply
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError, UsageError

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


class TokenBook:
    """The tokens in one file. Blocks; any thread may call it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens: dict[str, ApiToken] = {}
        self._stamp: tuple[int, int] | None = None

    def all(self) -> dict[str, ApiToken]:
        """Returns the tokens by name. Raises FusejournalError where the file cannot be read."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns
            if stamp != self._stamp:
                raw = read_object(self._path)
                tokens = [
                    checked(ApiToken(**{**one, "volumes": tuple(one["volumes"])}))
                    for one in raw["tokens"]
                ]
                if not all(token.role.upper() in AccessRole.__members__ for token in tokens):
                    raise ValueError("a role that is none")
                self._tokens = {token.name: token for token in tokens}
                self._stamp = stamp
        except FileNotFoundError:
            self._tokens, self._stamp = {}, None
        except (OSError, *UNREADABLE_JSON) as error:
            raise FusejournalError(f"{self._path}: cannot be read: {error}") from None
        return self._tokens

    def create(self, name: str, role: AccessRole, days: int, volumes: tuple[str, ...]) -> str:
        """Makes a token, and returns it, this once. Raises UsageError, also where there is one of
        that name; FusejournalError, OSError."""
        check_peer_name(name)
        if not 0 < days <= DAYS_MAX:
            raise UsageError(f"a token is good for 1 to {DAYS_MAX} days")
        for one in volumes:
            if one.count("/") != 1 or one.startswith("/") or one.endswith("/"):
                raise UsageError(f"{one!r} names no volume: say AGENT/VOLUME, or 'AGENT/*'")
        tokens = self.all()
        if name in tokens:
            raise UsageError(f"there is a token {name!r} already: revoke it first")
        text, now = _PREFIX + secrets.token_urlsafe(32), time.time()
        made = ApiToken(name, role.label, _hash(text), now, now + days * _DAY_SECONDS, volumes)
        self._save({**tokens, name: made})
        return text

    def revoke(self, name: str) -> None:
        """Forgets a token. Raises UsageError where there is none, FusejournalError, OSError."""
        tokens = self.all()
        if name not in tokens:
            raise UsageError(f"there is no token {name!r}: 'fusejournal console token list'")
        self._save({key: token for key, token in tokens.items() if key != name})

    def find(self, text: str) -> ApiToken | None:
        """Returns the token that *text* is, unless it has expired. Raises FusejournalError."""
        given, now = _hash(text), time.time()
        return next(
            (one for one in self.all().values() if one.hash == given and now < one.expires), None
        )

    def _save(self, tokens: dict[str, ApiToken]) -> None:
        raw = {"tokens": [asdict(token) for token in tokens.values()]}
        content = json.dumps(raw, indent=1).encode()
        write_atomically("console.tokens", self._path, content, Outlives.MACHINE)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
