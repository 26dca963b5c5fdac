"""Writes a man page for each command from its ``--help``: ``python -m scripts.manpages DIRECTORY``.

Source: man(7), man-pages(7)."""

import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import click

from fusejournal.cli.main import cli

_NO_REWRAP = "\b"


def pages(
    command: click.Command, name: str, above: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """Names and texts of the pages of *command*, which is called *name*, and of those below it."""
    context = click.Context(command, above, info_name=name, **command.context_settings)
    yield name.replace(" ", "-"), _page(command, context, name)
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            if found is not None and not found.hidden:
                yield from pages(found, f"{name} {sub}", context)


def _page(command: click.Command, context: click.Context, name: str) -> str:
    title = name.replace(" ", "-")
    pieces = command.collect_usage_pieces(context)
    made = datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC)
    source = f"fusejournal {version('fusejournal')}"
    lines = [
        f'.TH "{_escape(title.upper())}" 1 "{made:%Y-%m-%d}" "{source}" "fusejournal"',
        ".SH NAME",
        f"{_escape(title)} \\- {_escape(_summary(command))}",
        ".SH SYNOPSIS",
        f".B {_escape(name)}",
        *(f".I {_escape(piece)}" for piece in pieces),
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
    ]
    options = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None and record[1]
    ]
    if options:
        lines.append(".SH OPTIONS")
        for names, words in options:
            lines += [".TP", f".B {_escape(names)}", _escape(words)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            if found is not None and not found.hidden:
                page = _escape(f"{title}-{sub}")
                lines += [".TP", f".BR {page} (1)", _escape(_summary(found))]
    if name == "fusejournal":
        lines += [".SH EXIT STATUS", *_exit_codes()]
        lines += [".SH FILES", *_files()]
    lines += [".SH SEE ALSO", *_others(title)]
    return "\n".join(lines) + "\n"


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(200).rstrip(".")


def _paragraphs(help_text: str) -> Iterator[str]:
    """The text of a help, in which a paragraph after a backspace keeps its lines."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", help_text.strip())):
        if not paragraph.lstrip(" ").startswith(_NO_REWRAP):
            if number:
                yield ".PP"
            yield _escape(" ".join(paragraph.split()))
            continue
        head, *rows = paragraph.replace(_NO_REWRAP, "").strip(" \n").split("\n")
        if head.endswith(":"):
            yield f'.SH "{_escape(head[:-1].upper())}"'
        else:
            yield ".PP"
            rows = [head, *rows]
        yield ".nf"
        yield from map(_escape, rows)
        yield ".fi"


def _exit_codes() -> Iterator[str]:
    manual = files("fusejournal").joinpath("MANUAL.md").read_text(encoding="utf-8")
    section = manual.partition("## Exit codes")[2].partition("\n## ")[0]
    for code, words in re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE):
        yield ".TP"
        yield f".B {code}"
        yield _escape(words.replace("`", ""))


def _files() -> Iterator[str]:
    for path, words in (
        ("/etc/fusejournal/NAME.toml", "The configuration of the volume NAME."),
        ("/var/lib/fusejournal/NAME", "Its state directory: journal, keys and watermarks."),
        ("/usr/share/doc/fusejournal/MANUAL.md", "The manual: what to do when a start is refused."),
    ):
        yield ".TP"
        yield f".I {_escape(path)}"
        yield _escape(words)


def _others(title: str) -> Iterator[str]:
    above = title.rpartition("-")[0]
    yield f".BR {_escape(above)} (1)," if above else ".BR mount (8),"
    yield ".BR exports (5)"


def _escape(words: str) -> str:
    """*words* as roff takes them for themselves."""
    words = words.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    return rf"\&{words}" if words.startswith((".", "'")) else words


def main() -> None:
    """Write all pages."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages(cli, "fusejournal"):
        (directory / f"{name}.1").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
