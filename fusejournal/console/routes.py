"""The API that goes to agents, as a table: paths, methods, who may, what an agent is asked, and the
parameters. The app (app.py) and its description (openapi.py) are both made from it."""

from dataclasses import dataclass
from typing import Final, Literal

from fusejournal.console.users import AccessRole

_VOLUME: Final = "/api/agents/{agent}/volumes/{volume}"


@dataclass(frozen=True)
class Parameter:
    """A parameter: in the query of a GET, in the JSON body of a POST."""

    name: str
    kind: Literal["string", "integer", "boolean", "array"]
    words: str
    is_required: bool = False
    values: tuple[str, ...] = ()
    """All that it can be; empty where that is not a list."""


@dataclass(frozen=True)
class ApiRoute:
    """One way to ask. ``call`` is what the agent is asked; the fields are the parts of the path,
    but for the agent, and the parameters."""

    method: Literal["GET", "POST"]
    path: str
    call: str
    access: AccessRole
    words: str
    parameters: tuple[Parameter, ...] = ()


_FILTER: Final = (
    Parameter("path", "string", "A path from the volume's root, or a pattern."),
    Parameter("since", "string", "A time, as the command line takes it, or a mark: from here on."),
    Parameter("until", "string", "A time or a mark: up to here."),
    Parameter("op", "array", "Names of operations; any of them."),
    Parameter("uid", "integer", "The user who asked for it."),
)
_SEQS: Final = (
    Parameter("from_seq", "integer", "The first entry."),
    Parameter("to_seq", "integer", "The last entry."),
)
_PATH: Final = Parameter("path", "string", "A path from the volume's root.")
_AT: Final = (
    Parameter("at", "integer", "The moment right after this entry; without any: now."),
    Parameter("time", "string", "The moment at this time."),
    Parameter("mark", "string", "The moment of this mark."),
)

ROUTES: Final = (
    ApiRoute(
        "GET", f"{_VOLUME}/entries", "entries", AccessRole.VIEWER,
        "Entries, newest first, a page at a time.",
        (
            *_FILTER, *_SEQS,
            Parameter("count", "integer", "The most that is returned: up to 500."),
            Parameter("before_seq", "integer", "next_before_seq of the page before."),
        ),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/histogram", "histogram", AccessRole.VIEWER,
        "Numbers of entries over time, by operation and by user; of all paths.",
        (*_FILTER[1:], Parameter("bars", "integer", "The number of steps: up to 400.")),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/entries/{{seq}}", "entry", AccessRole.VIEWER,
        "One entry with all its fields. data=1 (its bytes, in base64) is for operators.",
        (Parameter("data", "boolean", "Whether the bytes are wanted, too."),),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/tree", "tree", AccessRole.VIEWER,
        "A directory as it was at a moment.",
        (_PATH, *_AT, Parameter("after", "string", "The last name of the page before.")),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/moments", "moments", AccessRole.VIEWER,
        "The entries at which what is shown changed.", (_PATH, *_AT),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/life", "life", AccessRole.VIEWER,
        "The lives of all files that had a path, through renames.", (_PATH,),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/difference", "difference", AccessRole.VIEWER,
        "What changed between two moments.",
        (
            Parameter("from_seq", "integer", "The older moment: after this entry.", True),
            _SEQS[1], _PATH,
        ),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/content", "content", AccessRole.OPERATOR,
        "The bytes of a file as it was.", (_PATH, *_AT),
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/marks", "mark", AccessRole.OPERATOR,
        "Gives the present point a name.", (Parameter("name", "string", "The name.", True),),
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/peers/{{peer}}/pause", "peer-pause", AccessRole.ADMIN,
        "Ships nothing to a peer.",
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/peers/{{peer}}/resume", "peer-resume", AccessRole.ADMIN,
        "Ships to a peer again.",
    ),
    ApiRoute(
        "GET", "/api/agents/{agent}/jobs", "job-list", AccessRole.VIEWER, "All jobs.",
    ),
    ApiRoute(
        "GET", "/api/agents/{agent}/jobs/{id}", "job-show", AccessRole.VIEWER,
        "A job with its plan and results.",
    ),
    ApiRoute(
        "POST", "/api/agents/{agent}/jobs", "job-create", AccessRole.OPERATOR,
        "Plans an undo, or begins a restore.",
        (
            Parameter("kind", "string", "What is to be done.", True, ("undo", "restore")),
            Parameter("volume", "string", "The volume.", True),
            *_FILTER,
            Parameter("seqs", "array", "undo: entries, or ranges of them: 7-12."),
            Parameter("without", "array", "undo: but not these."),
            Parameter(
                "on_conflict", "string", "undo: where later changes are in the way.",
                values=("stop", "skip", "aside"),
            ),
            Parameter("at", "integer", "restore: as it was right after this entry."),
        ),
    ),
    ApiRoute(
        "POST", "/api/agents/{agent}/jobs/{id}", "job-order", AccessRole.OPERATOR,
        "Has a job go on, pause, resume, stop, or be removed.",
        (
            Parameter(
                "order", "string", "What the job is to do.", True,
                ("do", "pause", "resume", "stop", "remove"),
            ),
        ),
    ),
)  # fmt: skip
