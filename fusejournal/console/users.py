"""The users of the console: names, roles, and passwords as scrypt makes them.

A user is added with a one-time code, by which the person chooses a password on the page: no
password is ever typed into a shell. The file is read anew when it has changed, so that ``console
user`` works beside a console that runs.

Source: RFC 7914 (scrypt); OWASP's Password Storage Cheat Sheet for its parameters."""

import hashlib
import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from fusejournal.address import check_peer_name
from fusejournal.control.reply import Reply
from fusejournal.disk.files import UNREADABLE_JSON, Outlives, write_atomically
from fusejournal.disk.json_records import checked, read_object
from fusejournal.errors import FusejournalError, UsageError
from fusejournal.wire.pairing import new_code, parse_code

LOGIN_CODE_SECONDS: Final = 24 * 3600
PASSWORD_CHARS_MIN: Final = 12
_PASSWORD_CHARS_MAX: Final = 256
_COST, _BLOCK, _PARALLEL = 1 << 15, 8, 1
_MEMORY_BYTES: Final = 64 << 20
_SALT_BYTES: Final = 16


class AccessRole(IntEnum):
    """The roles of users; each may do what those before it may."""

    VIEWER = 1
    """Sees all but the contents of files and the values of their extended attributes."""
    OPERATOR = 2
    """Sees contents, and recovers."""
    ADMIN = 3
    """Changes peers, and reads the audit."""

    @property
    def label(self) -> str:
        """Its name, as people write it."""
        return self.name.lower()


def parse_access_role(text: str) -> AccessRole:
    """Returns the role that *text* names. Raises UsageError."""
    try:
        return AccessRole[text.upper()]
    except KeyError:
        raise UsageError(f"{text!r} is no role: viewer, operator or admin") from None


@dataclass(frozen=True)
class ConsoleUser:
    """One user. ``salt`` and ``password`` are hexadecimal, and empty until a password is chosen;
    ``code`` is the SHA-256 of a one-time code, good until ``code_until`` (seconds since 1970)."""

    name: str
    role: str
    salt: str = ""
    password: str = ""
    code: str = ""
    code_until: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns what ``console user list --json`` prints: nothing of the password."""
        return {"name": self.name, "role": self.role, "has_password": bool(self.password)}

    @property
    def access(self) -> AccessRole:
        """The role."""
        return parse_access_role(self.role)


@dataclass(frozen=True, kw_only=True)
class UserAdded(Reply):
    """A user that was added, with the one-time code that is shown this once."""

    name: str
    role: str
    code: str


class UserBook:
    """The users in one file. Blocks; any thread may call it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._users: dict[str, ConsoleUser] = {}
        self._stamp: tuple[int, int] | None = None

    def all(self) -> dict[str, ConsoleUser]:
        """Returns the users by name. Raises FusejournalError where the file cannot be read."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns
            if stamp != self._stamp:
                raw = read_object(self._path)
                users = [_checked_user(ConsoleUser(**one)) for one in raw["users"]]
                self._users = {user.name: user for user in users}
                self._stamp = stamp
        except FileNotFoundError:
            self._users, self._stamp = {}, None
        except (OSError, *UNREADABLE_JSON) as error:
            raise FusejournalError(f"{self._path}: cannot be read: {error}") from None
        return self._users

    def add(self, name: str, role: AccessRole) -> str:
        """Adds a user, or gives one that is there another role and a new code. Returns the code.
        Raises UsageError, FusejournalError, OSError."""
        check_peer_name(name)
        code = new_code()
        user = ConsoleUser(
            name,
            role.label,
            code=_hash_code(code),
            code_until=time.time() + LOGIN_CODE_SECONDS,
        )
        before = self.all().get(name)
        if before is not None:
            user = replace(user, salt=before.salt, password=before.password)
        self._put(user)
        return code

    def remove(self, name: str) -> None:
        """Removes a user. Raises UsageError where there is none, FusejournalError, OSError."""
        users = self.all()
        if name not in users:
            raise UsageError(f"there is no user {name!r}: 'fusejournal console user list'")
        self._save({key: user for key, user in users.items() if key != name})

    def check(self, name: str, password: str) -> ConsoleUser | None:
        """Returns the user if the password is theirs. Takes as long where there is none. Raises
        FusejournalError."""
        user = self.all().get(name)
        has_password = user is not None and bool(user.password)
        salt = bytes.fromhex(user.salt) if user is not None and has_password else bytes(_SALT_BYTES)
        made = _scrypt(password[:_PASSWORD_CHARS_MAX], salt)
        expected = user.password if user is not None else ""
        is_right = hmac.compare_digest(made.hex(), expected)
        return user if is_right and has_password else None

    def choose_password(self, name: str, code: str, password: str) -> ConsoleUser | None:
        """Sets the password of a user who has a code, which is used up. Returns None where the code
        is wrong or has expired. Raises UsageError for a password that cannot be, or a text that is
        no code; FusejournalError, OSError."""
        if not PASSWORD_CHARS_MIN <= len(password) <= _PASSWORD_CHARS_MAX:
            raise UsageError(
                f"a password has {PASSWORD_CHARS_MIN} to {_PASSWORD_CHARS_MAX} characters"
            )
        user = self.all().get(name)
        given = _hash_code(code)
        if user is None or not user.code or time.time() > user.code_until:
            return None
        if not hmac.compare_digest(user.code, given):
            return None
        salt = secrets.token_bytes(_SALT_BYTES)
        changed = replace(
            user, salt=salt.hex(), password=_scrypt(password, salt).hex(), code="", code_until=0.0
        )
        self._put(changed)
        return changed

    def _put(self, user: ConsoleUser) -> None:
        self._save({**self.all(), user.name: user})

    def _save(self, users: dict[str, ConsoleUser]) -> None:
        raw: dict[str, Any] = {"users": [asdict(user) for user in users.values()]}
        content = json.dumps(raw, indent=1).encode()
        write_atomically("console.users", self._path, content, Outlives.MACHINE)


def _checked_user(user: ConsoleUser) -> ConsoleUser:
    """Raises ValueError."""
    checked(user)
    bytes.fromhex(user.salt)
    if user.role.upper() not in AccessRole.__members__ or not user.password.isascii():
        raise ValueError(f"no user: {user.name!r:.80}")
    return user


def _hash_code(code: str) -> str:
    # Of 80 random bits, and good once: there is nothing to be guessed.
    return hashlib.sha256(parse_code(code).encode()).hexdigest()


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=salt, n=_COST, r=_BLOCK, p=_PARALLEL, maxmem=_MEMORY_BYTES,
    )  # fmt: skip
