"""``fusejournal show``: one entry, all of it."""

from collections.abc import Iterator

import click

from fusejournal.admin.source import open_source
from fusejournal.cli import entries, text
from fusejournal.cli.seqs import SEQ
from fusejournal.history.json_values import whole_match_to_json
from fusejournal.types import SeqOrPosition

_HEX_BYTES = 16


@click.command(short_help="One entry, all of it.")
@click.argument("volume")
@click.argument("named", metavar="SEQ", type=SEQ)
@click.option("--data", "with_data", is_flag=True, help="The bytes it wrote, as a hex dump.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; --data: bytes in hex.")
def show(volume: str, named: SeqOrPosition, with_data: bool, as_json: bool) -> None:
    """Show entry SEQ of VOLUME's journal with all its fields. For a seq a position goes, too:
    EPOCH/SEQ/CHAIN, as messages print it.

    \b
    Examples:
      fusejournal show srv-data 4711
      fusejournal show srv-data 4711 --data | less
      fusejournal show srv-data 4711 --json | jq .path
    """
    source = open_source(volume)
    seq = source.check_seq(named)
    match = source.entry(seq)
    entry = match.entry
    line = whole_match_to_json(match, seq)
    if as_json:
        if with_data:
            line["data"] = bytes(entry.data).hex()
        text.echo_json(line)
        return
    if entry.seq != seq:
        text.echo(f"entry {seq} is the refusal of entry {entry.seq}:")
    text.echo(entries.as_line(match))
    for key, value in line.items():
        text.echo(f"  {key:<14}{_value(key, value)}")
    if with_data:
        for dumped in _hex_dump(bytes(entry.data), getattr(entry.operation, "offset", 0)):
            text.echo(dumped)


def _value(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key == "mode" and isinstance(value, int):
        return f"{value:06o}"
    if key.endswith("uid") and isinstance(value, int):
        return f"{value} ({entries.user(value)})"
    if key.endswith("time_ns") and isinstance(value, int):
        return f"{value} ({text.moment(value)})"
    if isinstance(value, str):
        return text.name(value.encode("utf-8", "surrogateescape"))
    return str(value)


def _hex_dump(data: bytes, offset: int) -> Iterator[str]:
    """Lines as ``hexdump -C`` has them; the addresses are places in the file."""
    for at in range(0, len(data), _HEX_BYTES):
        part = data[at : at + _HEX_BYTES]
        first, second = part[:8].hex(" "), part[8:].hex(" ")
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        yield f"{offset + at:08x}  {first:<23}  {second:<23}  |{shown}|"
