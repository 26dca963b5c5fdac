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
    """Everything that it can be; empty where that is not a list."""
    is_secret: bool = False
    """True if the audit is not to have it."""


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
_FORMAT: Final = Parameter(
    "format", "string", "The kind of archive; without any: tar.", values=("tar", "zip")
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
        "Entries, newest first, a page at a time. Values of extended attributes are for operators: "
        "hidden names the fields that an entry lacks.",
        (
            *_FILTER, *_SEQS,
            Parameter("bytes_min", "integer", "Entries that wrote so many bytes, or more."),
            Parameter("bytes_max", "integer", "Entries that wrote so many bytes, or less."),
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
        "One entry with all its fields. data=1 (its bytes, in base64) is for operators, and so are "
        "values of extended attributes.",
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
        "The lives of all files that had a path, through renames; without values of extended "
        "attributes for viewers.", (_PATH,),
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
        "GET", f"{_VOLUME}/archive", "archive", AccessRole.OPERATOR,
        "A directory as it was, as a tar or zip archive.", (_PATH, *_AT, _FORMAT),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/line-difference", "line-difference", AccessRole.OPERATOR,
        "The lines of a text file that differ between two moments.",
        (
            Parameter("path", "string", "Its path at the older moment.", True),
            Parameter("new_path", "string", "Its path at the newer one; without any: the same."),
            Parameter("from_seq", "integer", "The older moment: after this entry.", True),
            _SEQS[1],
        ),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/versions", "versions", AccessRole.VIEWER,
        "All versions, the oldest first, and their store.",
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/retention", "retention", AccessRole.VIEWER,
        "What keeps each version, when the policy lets it go and the schedule deletes it, and when "
        "the next version and pruning are due. Times are nanoseconds since 1970; days are of UTC.",
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/versions/{{version}}/tree", "version-tree", AccessRole.VIEWER,
        "A directory of a version, which is named by its name, seq or key.",
        (_PATH, Parameter("after", "string", "The last name of the page before.")),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/versions/{{version}}/content", "version-content", AccessRole.OPERATOR,
        "The bytes of a file of a version.", (_PATH,),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/versions/{{version}}/archive", "version-archive", AccessRole.OPERATOR,
        "A directory of a version, as a tar or zip archive.", (_PATH, _FORMAT),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/version-difference", "version-difference", AccessRole.VIEWER,
        "What differs between two versions.",
        (
            Parameter("old", "string", "The older version.", True),
            Parameter("new", "string", "The newer version.", True),
            _PATH,
        ),
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/versions/{{version}}/protect", "version-protect", AccessRole.OPERATOR,
        "Protects a version from being deleted.",
        (Parameter("off", "boolean", "No longer."),),
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/versions/{{version}}/delete", "version-delete", AccessRole.ADMIN,
        "Deletes a version.",
        (Parameter("confirm", "string", "Its name, seq or key, once more.", True),),
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/standing", "standing", AccessRole.VIEWER,
        "The node's role, reign, fence and position, and its peers.",
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
        "POST", f"{_VOLUME}/peers", "pair-with", AccessRole.ADMIN,
        "Pairs with a node that gave out a code; the volume is shipped to it from then on.",
        (
            Parameter("peer", "string", "The name that the other node gets here.", True),
            Parameter("address", "string", "Where it listens: ADDR:PORT.", True),
            Parameter("code", "string", "The code.", True, is_secret=True),
            Parameter("standby", "boolean", "Ship to it only once this node is the primary."),
        ),
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/pairing", "pair-open", AccessRole.ADMIN,
        "Gives out a code, good once and for ten minutes, by which another node pairs with this "
        "one; a code of before is taken back.",
    ),
    ApiRoute(
        "GET", f"{_VOLUME}/pairing/{{id}}", "pair-state", AccessRole.ADMIN,
        "The state of a code that was given out, and the peer that was paired by it.",
    ),
    ApiRoute(
        "POST", f"{_VOLUME}/pairing/{{id}}/close", "pair-close", AccessRole.ADMIN,
        "Takes a code back.",
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
        "Plans what can be planned: undo, restore (aside), in-place, and, for admins, prune, "
        "handoff, promote, demote and rejoin; or begins the making or verifying of a version.",
        (
            Parameter(
                "kind", "string", "What is to be done.", True,
                (
                    "undo", "restore", "in-place", "version-create", "version-verify", "prune",
                    "handoff", "promote", "demote", "rejoin",
                ),
            ),
            Parameter("volume", "string", "The volume.", True),
            *_FILTER,
            Parameter("seqs", "array", "undo: entries, or ranges of them: 7-12."),
            Parameter("without", "array", "undo: but not these."),
            Parameter("pids", "array", "undo: what these processes did."),
            Parameter(
                "job", "string",
                "undo: what this job did, by its id, in place of seqs and pids: the way back from "
                "an undo or a restore in place.",
            ),
            Parameter(
                "on_conflict", "string", "undo: where later changes are in the way.",
                values=("stop", "skip", "aside"),
            ),
            Parameter("at", "integer", "restore, in-place: as it was right after this entry."),
            Parameter("version", "string", "restore, in-place, version-verify: this version."),
            Parameter("data", "boolean", "version-verify: read every chunk, too."),
            Parameter("name", "string", "version-create: a name for it."),
            Parameter("peer", "string", "handoff: to this peer; rejoin: become level with it."),
            Parameter("force", "boolean", "promote, demote: whatever speaks against it."),
        ),
    ),
    ApiRoute(
        "POST", "/api/agents/{agent}/jobs/{id}", "job-order", AccessRole.OPERATOR,
        "Has a job be planned again, be done, pause, resume, stop, or be removed; remove-restored "
        "removes what a restore aside has made (has_restored), and nothing else.",
        (
            Parameter(
                "order", "string", "What the job is to do.", True,
                ("plan", "do", "pause", "resume", "stop", "remove", "remove-restored"),
            ),
            Parameter(
                "confirm", "string",
                "do: the volume's name, for what cannot be taken back (is_confirmed).",
            ),
            Parameter(
                "plan", "string",
                "do: the plan of the job that was looked at; another one is not done, but "
                "answered with 409. Without it, the plan that is there is done.",
            ),
        ),
    ),
)  # fmt: skip
