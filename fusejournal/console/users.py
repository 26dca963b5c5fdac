"""The users of the console: names, roles, and passwords as scrypt makes them.

A user is added with a one-time code, by which the person chooses a password on the page: no
password is ever typed into a shell.

Source: RFC 7914 (scrypt); OWASP's Password Storage Cheat Sheet for its parameters."""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from fusejournal.address import check_peer_name
from fusejournal.console.record_books import RecordBook
from fusejournal.control.reply import Reply
from fusejournal.disk.files import Outlives, write_atomically
from fusejournal.disk.json_records import checked
from fusejournal.errors import UsageError
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
    """A user that was added, or got a new one-time code, which is shown this once.
    ``previous_role``: that of a user who was there already; None for a new one."""

    name: str
    role: str
    code: str
    previous_role: str | None = None


class UserBook(RecordBook[ConsoleUser]):
    """The users in one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "users")

    def _record_of(self, raw: dict[str, Any]) -> ConsoleUser:
        return _checked_user(ConsoleUser(**raw))

    def _write(self, content: bytes) -> None:
        write_atomically("console.users", self._path, content, Outlives.MACHINE)

    def add(self, name: str, role: AccessRole | None = None) -> UserAdded:
        """Adds a user, or gives one that is there a new code. *role*: without any, a user keeps
        the role they have, and a new one is a viewer. Returns the code with the roles. Raises
        UsageError, also where no admin would be left; FusejournalError, OSError."""
        check_peer_name(name)
        code = new_code()
        with self._changing() as users:
            before = users.get(name)
            known = before.access if before is not None else AccessRole.VIEWER
            chosen = role or known
            admins = {one.name for one in users.values() if one.access is AccessRole.ADMIN}
            if chosen is not AccessRole.ADMIN and admins == {name}:
                raise UsageError(f"{name} is the last admin: add another one first")
            users[name] = replace(
                before or ConsoleUser(name, chosen.label),
                role=chosen.label,
                code=_hash_code(code),
                code_until=time.time() + LOGIN_CODE_SECONDS,
            )
        previous = before.role if before is not None else None
        return UserAdded(name=name, role=chosen.label, code=code, previous_role=previous)

    def remove(self, name: str) -> None:
        """Removes a user. Raises UsageError where there is none, FusejournalError, OSError."""
        with self._changing() as users:
            if name not in users:
                raise UsageError(f"there is no user {name!r}: 'fusejournal console user list'")
            del users[name]

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
        given = _hash_code(code)
        if not _has_code(self.all().get(name), given):
            return None
        # Made before the others wait: it takes its time.
        salt = secrets.token_bytes(_SALT_BYTES)
        made = _scrypt(password, salt)
        with self._changing() as users:
            user = users.get(name)
            if user is None or not _has_code(user, given):
                return None  # used, or taken back, meanwhile
            users[name] = changed = replace(
                user, salt=salt.hex(), password=made.hex(), code="", code_until=0.0
            )
        return changed


def _has_code(user: ConsoleUser | None, given: str) -> bool:
    """Returns True if *given* is the hash of the code of *user*, which is still good."""
    if user is None or not user.code or time.time() > user.code_until:
        return False
    return hmac.compare_digest(user.code, given)


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
