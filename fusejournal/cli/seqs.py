"""The parameters of all commands that choose entries: one by its seq, or by its position as
messages print it; several by their operations. Whether the journal has them is not looked at here
(admin/source.py)."""

import click

from fusejournal.kinds import Kind
from fusejournal.types import SeqOrPosition, position_of_text


# (In click 8.1 that is no generic class.)
class EntryParameter(click.ParamType):  # type: ignore[type-arg]
    """An entry; its seq is *least* at least, and what a seq can be at most."""

    name = "seq|position"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(
        self,
        value: SeqOrPosition | str,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> SeqOrPosition:
        """Returns the seq or the position that *value* tells. Raises click.BadParameter."""
        if not isinstance(value, str):
            return value
        try:
            named = position_of_text(value) if "/" in value else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a seq nor a position, EPOCH/SEQ/CHAIN", param, ctx)
        seq = named if isinstance(named, int) else named.seq
        if seq < self._least:
            self.fail(f"{value!r}: the first seq that can be here is {self._least}", param, ctx)
        return named


SEQ = EntryParameter(1)
"""An entry."""

MOMENT = EntryParameter(0)
"""An entry, after which the tree is meant; 0 is the empty tree."""

OPS = click.option(
    "--op",
    "ops",
    multiple=True,
    metavar="OP,...",
    help=f"Only these operations: {', '.join(kind.name.lower() for kind in Kind)}.",
)
"""The option that chooses entries by their operations, for history/query.py's parse_kinds."""
