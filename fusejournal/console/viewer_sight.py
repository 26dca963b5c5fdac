"""The part of an agent's answer that a viewer sees: all but what users wrote. Contents of files
come by calls of their own, which are for operators; values of extended attributes are fields of
entries, and taken out of these here, ACLs among them. The attributes' names stay. Pure."""

from typing import Any, Final

HIDDEN_FIELDS: Final = frozenset(("value", "acl", "default_acl", "xattrs"))
"""The fields of entries, by whatever operation, that hold values of extended attributes."""


def seen_by_viewer(value: Any) -> Any:
    """Returns *value*, of an agent's answer, without values of extended attributes, however deep in
    it an entry is. An entry that lacks some has their fields' names as ``hidden``."""
    if isinstance(value, list):
        return [seen_by_viewer(one) for one in value]
    if not isinstance(value, dict):
        return value
    seen = {key: seen_by_viewer(one) for key, one in value.items()}
    if "op" not in value:
        return seen
    hidden = sorted(key for key in HIDDEN_FIELDS & value.keys() if value[key] not in (None, []))
    if hidden:
        seen |= {key: _names_in(value[key]) if key == "xattrs" else None for key in hidden}
        seen["hidden"] = hidden
    return seen


def _names_in(xattrs: Any) -> list[Any]:
    """Returns pairs of a name and a value with None in place of each value; nothing of what is no
    such list."""
    if not isinstance(xattrs, list):
        return []
    return [[pair[0], None] for pair in xattrs if isinstance(pair, list) and pair]
