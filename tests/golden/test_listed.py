"""Each format, file and message that the pages list names its golden sample, or the reason why it
has none; and each golden sample is named there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fusejournal
from fusejournal.agent import place as agent_place
from fusejournal.console import place as console_place
from fusejournal.journal.reader import END, JournalReader
from fusejournal.node import state_dir
from fusejournal.operations import Kind
from fusejournal.wire import frames
from tests.golden.files import HERE, golden
from tests.support.decoders import DECODERS
from tests.support.entries import UUID_OF_TESTS

_PACKAGE = Path(fusejournal.__file__).parent
_FORMAT = _PACKAGE / "journal/FORMAT.md"
_REASON_CHARS_MIN = 5
_LISTED_ELSEWHERE = {
    "agent-answers-v1": "what an agent answers to calls-v1, of its machine",
    "answers-v1": "what an agent answers to calls-v1, of a journal",
    "control-v1": "what goes over sockets; named in a reason of the table",
    "status-v1": "what scripts read of --json; named in a reason of the table",
    "proofs-v1": "PROTOCOL.md, the passes, FJOPEN2 and PAIR_OFFER",
    "wire-v1": "PROTOCOL.md, a message a row",
}
_WRITES_NO_FORMAT = {
    "install": "a unit of systemd or the mount helper",
    "exports": "exports(5)",
    "version.key.export": "the text of store.key, at another place",
    "journal.cut.save": "bytes that were cut off, as they were",
    "reconcile.keep": "the content of a file, as it was",
    "journal.spare": "zeros",
    "scratch": "of a restore under way, which begins anew without it; a replay refuses another's",
}
"""Labels of writes of whole files that have no format of the program's own, and why."""
_WRITTEN = {
    "agent.consoles": "agent-consoles-v1",
    "agent.job": "agent-jobs-v1",
    "agent.progress": "agent-jobs-v1",
    "catalog.seal": "catalog-seal-v1",
    "connection": "connection-v1",
    "console.agents": "console-agents-v1",
    "console.alerts": "console-alerts-v1",
    "console.seen": "console-seen-v1",
    "console.told": "console-told-v1",
    "console.tokens": "console-tokens-v1",
    "console.users": "console-users-v1",
    "identity.certificate": "identity-v1",
    "identity.key": "identity-v1",
    "index": "index-v2",
    "journal.base": "base-v1",
    "journal.compress": "seekable-v1",
    "journal.cut_back": "journal-v1",
    "journal/branches": "branch-v1",
    "level.intent": "level-v1",
    "members": "members-v1",
    "nfs-aside": "clients-v1",
    "nfs-clients": "clients-v1",
    "parted": "parted-v1",
    "peers": "peers-v1",
    "prune.verified": "verified-v1",
    "rejoin.intent": "rejoin-v1",
    "scrub.record": "scrub-v1",
    "signatures.make": "signatures-v1",
    "state": "volume-v4",
    "version.key": "key-v1",
    "version.place": "place-v1",
    "version.record": "versions-v1",
    "watermarks.make": "watermarks-v1",
    "witness": "witness-v1",
}
"""Labels of all other writes of whole files, and the golden sample of what each writes."""


_DECODED = {
    "agent-answers": "answer",
    "agent-consoles": "consoles",
    "agent-jobs": "job_request",
    "alert-message": "none: written alone, for others to read",
    "answers": "answer",
    "base": "base",
    "boot": "boot",
    "branch": "branch",
    "calls": "call",
    "catalog": "none: LMDB's pages; fault/test_damage.py damages them",
    "catalog-seal": "seal",
    "checkpoint": "checkpoint",
    "clients": "clients",
    "connection": "connection",
    "console-agents": "agents",
    "console-alerts": "alerts",
    "console-audit": "audit",
    "console-seen": "seen",
    "console-told": "told",
    "console-tokens": "tokens",
    "console-users": "users",
    "control": "control",
    "identity": "certificate",
    "index": "index",
    "journal": "segment",
    "key": "key",
    "level": "level",
    "lock": "lock",
    "members": "members",
    "open-files": "open_files",
    "parted": "parted",
    "peers": "peers",
    "place": "place",
    "progress": "progress",
    "proofs": "hello",
    "records": "inode",
    "rejoin": "rejoin",
    "release-0.1.0-greetings": "message",
    "requests-linux-6.18": "request",
    "scrub": "scrub",
    "sealed": "sealed",
    "seekable": "seekable",
    "signatures": "signatures",
    "status": "reply",
    "store": "pack",
    "store-heads": "store_head",
    "store-objects": "version",
    "tree-nodes": "node",
    "verified": "verified",
    "versions": "versions",
    "volume": "volume",
    "watermarks": "watermarks",
    "wire": "message",
    "witness": "witness",
}
"""The decoder of each sample's format (tests/support/decoders.py), where it meets bytes that cannot
be; or the reason why there is none."""


def _tables() -> Iterator[tuple[str, str, str]]:
    """The section, first and last cell of each row of the tables with a column "golden"."""
    section, has_golden = "", False
    for line in _FORMAT.read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if not cells:
            has_golden = False
        elif cells[0] in ("file", "object"):
            assert cells[-1] == "golden", f"{section}: a table of files without their samples"
            has_golden = True
        elif has_golden and not set(cells[0]) <= {"-"}:
            yield section, cells[0], cells[-1]


def test_each_file_names_its_sample_or_why_there_is_none() -> None:
    there = {path.stem for path in HERE.glob("*.json")}
    wrong = []
    for section, file, cell in _tables():
        names = re.fullmatch(r"`([\w.-]+)`(?:, `([\w.-]+)`)*", cell)
        if names is not None:
            wrong += [f"{file}: {one}" for one in re.findall(r"`(.*?)`", cell) if one not in there]
        elif not re.fullmatch(rf"none: .{{{_REASON_CHARS_MIN},}}", cell):
            wrong.append(f"{section}: {file}: {cell!r}")
    assert wrong == []


def test_each_sample_is_named() -> None:
    page = _FORMAT.read_text()
    listed = set(re.findall(r"`([\w.-]+-v\d)(?:-[\w-]+)?`", page)) | set(_LISTED_ELSEWHERE)
    there = {
        # Journals with other entries are further samples of the one format.
        re.sub(r"(-v\d).*", r"\1", path.stem)
        for path in HERE.glob("*-v[0-9]*.json")
    }
    assert there - listed == set()


def test_each_sample_has_a_decoder_that_meets_damage_or_a_reason() -> None:
    there = {re.sub(r"-v\d.*", "", path.stem) for path in HERE.glob("*.json")}
    assert there == set(_DECODED)
    named = {told for told in _DECODED.values() if not told.startswith("none: ")}
    assert named - set(DECODERS) == set()


@pytest.mark.parametrize(
    ("section", "where", "prefix"),
    [
        ("The state directory", state_dir.__doc__, "STATE/"),
        ("Agent and console", agent_place.__doc__, ".agent/"),
        ("Agent and console", console_place.__doc__, ".console/"),
    ],
)
def test_the_tables_have_the_files_of_the_modules(
    section: str, where: str | None, prefix: str
) -> None:
    told = re.findall(rf"^ +{re.escape(prefix)}([\w.-]+)", where or "", re.MULTILINE)
    assert len(told) > 5
    own = "" if prefix == "STATE/" else prefix
    listed = {
        name.removeprefix(own).partition("/")[0]
        for at, cell, _ in _tables()
        if at == section
        for name in re.findall(r"`(.*?)`", cell)
        if name.startswith(own)
    }
    assert listed - {"diverged.FIRST-LAST"} == set(told)


def test_each_kind_of_entry_is_in_a_sample(tmp_path: Path) -> None:
    found = set()
    for path in HERE.glob("journal-v1*.json"):
        directory = tmp_path / path.stem
        directory.mkdir()
        segment = bytes.fromhex("".join(golden(path.stem)["segment"]))
        (directory / "00000000000000000001.fj").write_bytes(segment)
        reader = JournalReader(directory, UUID_OF_TESTS)
        found |= {entry.operation.kind for entry in reader.read(1, END)}  # type: ignore[arg-type]
    assert found == set(Kind)


def test_the_page_of_the_protocol_has_a_row_for_each_message() -> None:
    page = (_PACKAGE / "wire/PROTOCOL.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, re.MULTILINE)
    named = {int(number): name.replace("_", "") for number, name in rows}
    types = {number: kind.__name__.upper() for number, kind in frames._TYPES.items()}
    renamed = {"MEMBERS": "MEMBERSREPORT"}
    assert {number: renamed.get(name, name) for number, name in named.items()} == types


_WRITERS = ("write_atomically", "replacing", "write_new")


def _labels_of_whole_files() -> Iterator[str]:
    """The labels of writes; the name of the module where that is not a text."""
    for path in _PACKAGE.rglob("*.py"):
        module = str(path.relative_to(_PACKAGE).with_suffix(""))
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in _WRITERS:
                    pass
                case ast.Call(args=[ast.Name(id=name), first, *_]) if name in _WRITERS:
                    pass  # (A thread is to do it.)
                case _:
                    continue
            if isinstance(first, ast.Constant):
                yield str(first.value)
            elif module != "disk/files":
                yield module


def test_whatever_writes_a_whole_file_names_the_sample_of_it() -> None:
    """A file that is new has its sample, or a reason why it needs none."""
    assert set(_labels_of_whole_files()) == {*_WRITTEN, *_WRITES_NO_FORMAT}
    there = {path.stem for path in HERE.glob("*.json")}
    assert set(_WRITTEN.values()) - there == set()
