"""The names of this machine's users, which a page on another machine could not look up."""

import pwd
from collections.abc import Iterable


def account_names(uids: Iterable[int | None]) -> dict[str, str]:
    """Returns the names of *uids*, by their numbers as text; those without a name are left out."""
    names: dict[str, str] = {}
    for uid in {uid for uid in uids if uid is not None}:
        try:
            names[str(uid)] = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            continue
    return names
