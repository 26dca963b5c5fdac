"""The kinds of jobs: what each is asked with, who may, and the command line that does the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.disk.files import UNREADABLE_JSON
from fusejournal.errors import FusejournalError, PrivilegeError, UsageError

ROLES: Final = ("viewer", "operator", "admin")
"""The roles of a console's users; each may do what those before it may."""
_CONFLICTS: Final = ("stop", "skip", "aside")
_Request = dict[str, Any]


class ForbiddenJobError(PrivilegeError):
    """A user of a console whose role does not suffice."""


@dataclass(frozen=True)
class JobKind:
    """A kind of job."""

    access: str
    """The least role of a user who may ask for it and order it."""
    plans: bool
    """True if it is planned first, and waits for the admin to have it done."""
    is_confirmed: bool
    """True if having it done needs the volume's name as ``confirm``: it cannot be taken back."""
    make: Callable[[Fields, Path], _Request]
    """Returns the request's own fields. Its second argument is where a restore may go to."""
    command: Callable[[_Request], str]
    """Returns the command line that does the same. Raises UsageError."""


# -- recovery --------------------------------------------------------------------------------------


def _undo(fields: Fields, _: Path) -> _Request:
    on_conflict = fields.text("on_conflict", "stop")
    if on_conflict not in _CONFLICTS:
        raise UsageError(f"on_conflict is one of {', '.join(_CONFLICTS)}")
    path, pids = fields.text_or_none("path"), fields.texts("pids")
    if wrong := [one for one in pids if not (one.isascii() and one.isdigit() and len(one) < 11)]:
        raise UsageError(f"{wrong[0]!r:.80} is no process's number")
    return {
        "of_job": fields.text_or_none("job"),
        "seqs": fields.texts("seqs"),
        "of_pids": [int(one) for one in pids],
        "paths": [path] if path else [],
        "ops": fields.texts("op"),
        "uid": fields.number_or_none("uid"),
        "since": fields.text_or_none("since"),
        "until": fields.text_or_none("until"),
        "without": fields.texts("without"),
        "on_conflict": on_conflict,
    }


def _undo_command(request: _Request) -> str:
    options: list[tuple[str, object]] = [("--path", one) for one in request["paths"]]
    options += [
        ("--op", ",".join(request["ops"])), ("--uid", request["uid"]),
        *(("--pid", one) for one in request["of_pids"]),
        ("--since", request["since"]), ("--until", request["until"]),
        *(("--except", one) for one in request["without"]),
        ("--on-conflict", None if request["on_conflict"] == "stop" else request["on_conflict"]),
        ("--apply", True),
    ]  # fmt: skip
    return command_line("undo", request["volume"], *request["seqs"], options=options)


def _moment(fields: Fields) -> _Request:
    """Returns which moment: after an entry, or a version."""
    at, version = fields.number_or_none("at", least=1), fields.text_or_none("version")
    if (at is None) == (version is None):
        raise UsageError("give one of at (an entry) and version")
    return {"path": fields.text("path", ""), "at": at, "version": version}


def _restore(fields: Fields, target: Path) -> _Request:
    return {**_moment(fields), "target": str(target)}


def _restore_command(request: _Request) -> str:
    return _restoring(request, [("--target", request["target"])])


def _in_place(fields: Fields, _: Path) -> _Request:
    return _moment(fields)


def _in_place_command(request: _Request) -> str:
    return _restoring(request, [("--in-place", True), ("--apply", True)])


def _restoring(request: _Request, options: list[tuple[str, object]]) -> str:
    words = [request["volume"], *([request["path"]] if request["path"] else [])]
    moment: list[tuple[str, object]] = [
        ("--to-seq", request["at"]), ("--to-version", request.get("version")),
    ]  # fmt: skip
    return command_line("restore", *words, options=[*moment, *options])


# -- versions --------------------------------------------------------------------------------------


def _create_version(fields: Fields, _: Path) -> _Request:
    return {"name": fields.text("name", "")}


def _create_version_command(request: _Request) -> str:
    name = request["name"]
    return command_line("version", "create", request["volume"], *([name] if name else []))


def _verify_version(fields: Fields, _: Path) -> _Request:
    return {"version": fields.text("version"), "data": fields.flag("data")}


def _verify_version_command(request: _Request) -> str:
    words = ("version", "verify", request["volume"], request["version"])
    return command_line(*words, options=[("--data", request["data"])])


def _nothing(_: Fields, __: Path) -> _Request:
    return {}


def _prune_command(request: _Request) -> str:
    return command_line("prune", request["volume"])


# -- roles -----------------------------------------------------------------------------------------


def _handoff(fields: Fields, _: Path) -> _Request:
    peer = fields.text("peer")
    if not peer or peer.startswith("-"):
        raise UsageError(f"{peer!r:.80} is no peer's name")
    return {"peer": peer}


def _handoff_command(request: _Request) -> str:
    return command_line("handoff", request["volume"], request["peer"])


def _forced(fields: Fields, _: Path) -> _Request:
    return {"force": fields.flag("force")}


def _promote_command(request: _Request) -> str:
    return command_line("promote", request["volume"], options=[("--force", request["force"])])


def _demote_command(request: _Request) -> str:
    return command_line("demote", request["volume"], options=[("--force", request["force"])])


def _rejoin(fields: Fields, _: Path) -> _Request:
    return {"peer": fields.text_or_none("peer")}


def _rejoin_command(request: _Request) -> str:
    return command_line("rejoin", request["volume"], options=[("--from", request["peer"])])


KINDS: Final[dict[str, JobKind]] = {
    "undo": JobKind("operator", True, False, _undo, _undo_command),
    "restore": JobKind("operator", True, False, _restore, _restore_command),
    "in-place": JobKind("operator", True, False, _in_place, _in_place_command),
    "version-create": JobKind("operator", False, False, _create_version, _create_version_command),
    "version-verify": JobKind("operator", False, False, _verify_version, _verify_version_command),
    "prune": JobKind("admin", True, True, _nothing, _prune_command),
    "handoff": JobKind("admin", True, False, _handoff, _handoff_command),
    "promote": JobKind("admin", True, True, _forced, _promote_command),
    "demote": JobKind("admin", True, True, _forced, _demote_command),
    "rejoin": JobKind("admin", True, True, _rejoin, _rejoin_command),
}


def kind_of(name: str) -> JobKind:
    """Returns the kind *name*. Raises UsageError."""
    kind = KINDS.get(name)
    if kind is None:
        raise UsageError(f"{name!r:.80} is no kind of job: {', '.join(KINDS)}")
    return kind


def check_access(kind: JobKind, fields: Fields) -> None:
    """Raises ForbiddenJobError where the user's role, which the console gives as ``access``, does
    not suffice for *kind*. A console of before gives none: its jobs are for operators."""
    given = fields.text("access", "operator")
    rank = ROLES.index(given) if given in ROLES else -1
    if rank < ROLES.index(kind.access):
        raise ForbiddenJobError(f"this is for the role {kind.access}")


def check_request(request: dict[str, Any]) -> None:
    """Raises FusejournalError for a job whose request cannot be read."""
    try:
        if request["kind"] in KINDS and isinstance(request["volume"], str):
            KINDS[request["kind"]].command(request)
            return
    except UNREADABLE_JSON:
        pass
    raise FusejournalError("the job's request cannot be read: remove it, and ask anew")
