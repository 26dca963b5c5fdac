"""The command lines that do what a person does on the page, to be shown beside it."""

import shlex
from collections.abc import Iterable
from typing import Any


def command_line(*words: str, options: Iterable[tuple[str, object]] = ()) -> str:
    """Returns ``fusejournal`` with *words* and *options*, as a shell takes them; an option without
    a value (None, empty) is left out, one that is True stands alone. A word that begins with a
    dash, as a path may, comes after all of them and ``--``."""
    at = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    found = ["fusejournal", *words[:at]]
    for name, value in options:
        if value is None or value is False or value == "":
            continue
        found += [name] if value is True else [name, str(value)]
    if at < len(words):
        found += ["--", *words[at:]]
    return " ".join(_quoted(word) for word in found)


def note_way_back(job: dict[str, Any], volume: str, head_seq: int | None = None) -> None:
    """Puts the way back from a job into its values *job*: ``way_back``, the ranges of entries that
    its processes made and these processes, and ``undo_command``, the command line that takes back
    what all of them did. *head_seq*: the last entry, where one of them was killed."""
    pids, ranges = [], []
    for pid, (first, last) in job.get("results", {}).items():
        end = head_seq if last is None else last
        if end is not None and end >= first:
            pids.append(str(pid))
            ranges.append(f"{first}-{end}")
    if ranges:
        options: list[tuple[str, object]] = [*(("--pid", pid) for pid in pids), ("--apply", True)]
        job["way_back"] = {"seqs": ranges, "pids": pids}
        job["undo_command"] = command_line("undo", volume, *ranges, options=options)


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # $'...' of bash and zsh: what is no text or moves the cursor is written as bytes.
    raw = word.encode("utf-8", "surrogateescape")
    inner = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\\'" else f"\\x{byte:02x}"
        for byte in raw
    )
    return f"$'{inner}'"
