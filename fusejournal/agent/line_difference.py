"""The difference of a text file between two moments, line by line. Only texts of a bounded size are
compared: the time that it takes grows with the square of their lines."""

import difflib
from collections.abc import Iterable
from typing import Any, Final

from fusejournal.admin.source import JournalSource
from fusejournal.agent.archives import content_of_image
from fusejournal.agent.command_lines import command_line
from fusejournal.agent.fields import Fields
from fusejournal.errors import UsageError
from fusejournal.history.json_values import exact
from fusejournal.replay.fold import find_file
from fusejournal.replay.images import read_images
from fusejournal.types import Seq

_BYTES_MAX: Final = 512 << 10
_LINES_MAX: Final = 4000
_CONTEXT: Final = 3


def line_difference(source: JournalSource, fields: Fields) -> dict[str, Any]:
    """Returns the lines that differ, as a unified difference has them. Fields: ``path`` and
    ``from_seq``, the older one; ``new_path`` (the same), and ``to_seq`` (now). Raises UsageError
    for what is no text or too large; PathNotFoundError, NoSuchSeqError, FusejournalError."""
    old_path = source.path(fields.text("path"))
    new_path = source.path(fields.text_or_none("new_path") or fields.text("path"))
    first = source.check_moment(fields.number("from_seq", least=0))
    last = source.check_moment(fields.number("to_seq", int(source.head_seq), least=0))
    old = _lines(source, old_path, Seq(first + 1))
    new = _lines(source, new_path, Seq(last + 1))
    found = [
        line.rstrip("\n")
        for line in difflib.unified_diff(old, new, n=_CONTEXT, lineterm="")
    ]  # fmt: skip
    words = [source.name, str(first), str(last), exact(new_path)]
    return {
        "lines": found[2:],  # without the names of the two
        "old_lines": len(old),
        "new_lines": len(new),
        "command": command_line("diff", *words),
    }


def _lines(source: JournalSource, path: bytes, before: Seq) -> list[str]:
    fid = find_file(source.lookup, path, before)
    image = read_images(source.lookup, {fid}, before, None, lambda _, __: None)[fid]
    if image.state.size > _BYTES_MAX:
        raise UsageError(
            f"/{exact(path)} has {image.state.size} bytes, and up to {_BYTES_MAX} are compared "
            "here: download both"
        )
    content = _joined(content_of_image(source.lookup, image))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"/{exact(path)} is no text in UTF-8: download both") from None
    lines = text.split("\n")
    if len(lines) > _LINES_MAX:
        raise UsageError(
            f"/{exact(path)} has {len(lines)} lines, and up to {_LINES_MAX} are compared here: "
            "download both"
        )
    return lines


def _joined(pieces: Iterable[bytes]) -> bytes:
    return b"".join(pieces)
