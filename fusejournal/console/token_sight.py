"""The part of the console's own answers that a token for some volumes alone sees: these volumes,
and the servers that they are on. Errors of a server may be about its other volumes, or show where
it is, so their words are not among it. Pure."""

from collections.abc import Iterable
from typing import Any, Final

from fusejournal.console.tokens import ApiToken

_ERROR: Final = "the server is not reached, or its answer is of no use"
_PATTERN: Final = frozenset("*?[")


def has_agent(token: ApiToken, agent: str, volumes: Iterable[str]) -> bool:
    """Returns True if *token* is for a volume on *agent*, which has *volumes* as far as is known. A
    pattern for volumes on all servers is for those that have one."""
    named = (one.partition("/")[0] for one in token.volumes)
    return (
        not token.volumes
        or any(one == agent and not _PATTERN & set(one) for one in named)
        or any(token.is_for(agent, volume) for volume in volumes)
    )


def seen_by_token(token: ApiToken, overview: dict[str, Any]) -> dict[str, Any]:
    """Returns what *token* sees of the overview."""
    if not token.volumes:
        return overview
    agents = []
    for one in overview["agents"]:
        names = [volume["name"] for volume in one["volumes"]]
        if has_agent(token, one["name"], names):
            volumes = [each for each in one["volumes"] if token.is_for(one["name"], each["name"])]
            error = None if one["error"] is None else _ERROR
            agents.append({**one, "volumes": volumes, "error": error})
    shown = {one["name"] for one in agents}
    alerts = []
    for alert in overview["alerts"]:
        if not alert["volume"] and alert["agent"] in shown:
            alerts.append({**alert, "words": _ERROR, "advice": ""})
        elif alert["volume"] and token.is_for(alert["agent"], alert["volume"]):
            alerts.append(alert)
    return {"agents": agents, "alerts": alerts, "channels": []}
