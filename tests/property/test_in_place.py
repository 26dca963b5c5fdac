"""Plans of restores in place, carried out on paper: the path is what it was, and all else stays."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fusejournal.errors import ConflictError
from fusejournal.history.name_changes import Dentry
from fusejournal.journal.reader import JournalReader
from fusejournal.types import ROOT_FID, Fid, Seq
from fusejournal.versions.blocks import BlockWriter
from fusejournal.versions.builder import build_trees, no_trees
from fusejournal.versions.content import read_content
from fusejournal.versions.in_place import InPlacePlan, plan_in_place
from fusejournal.versions.records import InodeRecord
from fusejournal.versions.trees import Trees
from fusejournal.versions.version_tree import VersionTree
from tests.support.objects import MemoryStore
from tests.support.random_workloads import workloads
from tests.support.volumes import show_nothing
from tests.support.workload import Workload, workspace


def _trees(blocks: BlockWriter, reader: JournalReader, seq: int) -> Trees:
    return build_trees(blocks, no_trees(blocks), reader, Seq(1), Seq(seq + 1), show_nothing)


def _names(tree: VersionTree) -> dict[Dentry, Fid]:
    found: dict[Dentry, Fid] = {}
    todo = [ROOT_FID]
    while todo:
        directory = todo.pop()
        for name, fid in tree.children(directory):
            found[directory, name] = fid
            if tree.record(fid).type == 0o040000:
                todo.append(fid)
    return found


def _paths(names: dict[Dentry, Fid]) -> dict[bytes, Fid]:
    """Paths by the names in directories; each directory is reached."""
    found, todo = {b"": ROOT_FID}, [(b"", ROOT_FID)]
    below: dict[Fid, list[tuple[bytes, Fid]]] = {}
    for (parent, name), fid in names.items():
        below.setdefault(parent, []).append((name, fid))
    while todo:
        path, directory = todo.pop()
        for name, fid in below.get(directory, ()):
            found[child := path + b"/" + name if path else name] = fid
            todo.append((child, fid))
    return found


def _whole(record: InodeRecord) -> tuple[Any, ...]:
    return record._replace(fid=Fid(0), links=())


class _OnPaper:
    """A plan, carried out on what names and records are."""

    def __init__(self, plan: InPlacePlan, now: VersionTree) -> None:
        self._plan = plan
        self._now = now
        self.names = _names(now)
        for place, fid in plan.names.now.items():
            assert self.names.pop(place) == fid
        for place, wanted in plan.names.wanted.items():
            if wanted is not None:
                assert place not in self.names
                self.names[place] = wanted
        self.paths = _paths(self.names)
        assert len(self.paths) == len(self.names) + 1, "a name that nothing leads to"

    def record(self, fid: Fid) -> InodeRecord:
        plan = self._plan
        assert plan.files is not None
        if fid in plan.names.new or fid in plan.changed:
            return plan.files.records[fid]
        record = self._now.record(fid)
        if fid in plan.directories and fid in plan.files.records:
            return record._replace(mtime_ns=plan.files.records[fid].mtime_ns)
        return record


def _is_below(path: bytes, top: bytes) -> bool:
    return not top or path == top or path.startswith(top + b"/")


def _check(plan: InPlacePlan, then: VersionTree, now: VersionTree, top: bytes) -> None:
    done = _OnPaper(plan, now)
    was, is_now = _paths(_names(then)), _paths(_names(now))
    above = {top[:at] for at in range(len(top)) if top[at : at + 1] == b"/"} | {b""}
    assert {path for path in done.paths if _is_below(path, top)} == {
        path for path in was if _is_below(path, top)
    }
    same: dict[Fid, set[bytes]] = {}
    for path, fid in done.paths.items():
        if _is_below(path, top):
            record, wanted = done.record(fid), then.record(was[path])
            if was[path] != ROOT_FID or wanted.mode is not None:
                assert _whole(record) == _whole(wanted), path
            same.setdefault(fid, set()).add(path)
        elif path not in above:
            assert is_now[path] == fid
            is_as_before = _whole(done.record(fid)) == _whole(now.record(fid))
            assert is_as_before or any(path in one.shared for one in plan.changes)
    # Of one file then are the names of one file.
    for paths in same.values():
        assert len({was[path] for path in paths}) == 1
    by_then: dict[Fid, set[Fid]] = {}
    for path, fid in was.items():
        if _is_below(path, top):
            by_then.setdefault(fid, set()).add(done.paths[path])
    assert all(len(fids) == 1 for fids in by_then.values())
    assert {path for path in is_now if not _is_below(path, top)} <= done.paths.keys()
    _check_contents(plan, then, now)
    # What was told is what is done.
    assert plan.is_empty or plan.changes or plan.directories


@settings(max_examples=60)
@given(
    workload=workloads(),
    moments=st.tuples(st.integers(1, 1 << 16), st.integers(0, 1 << 16)),
    choice=st.integers(0, 1 << 16),
)
def test_a_path_is_what_it_was(workload: Workload, moments: tuple[int, int], choice: int) -> None:
    with workspace() as base:
        workload.write(base / "journal")
        reader = JournalReader(base / "journal")
        blocks = BlockWriter(MemoryStore())
        seq = moments[0] % workload.head_seq + 1
        later = seq + moments[1] % (workload.head_seq + 1 - seq)
        sides = _trees(blocks, reader, seq), _trees(blocks, reader, later)
        # Forth, and back to what is later: a restore is made to a lost history, too.
        for then_trees, now_trees in (sides, sides[::-1]):
            then, now = VersionTree(blocks, then_trees), VersionTree(blocks, now_trees)
            paths = sorted(_paths(_names(then)))
            for top in {paths[choice % len(paths)], b"", paths[-1]}:
                plan = _plan(then, then_trees, now, now_trees, top)
                if plan is not None:
                    _check(plan, then, now, top)
            assert plan_in_place(then, then_trees, then, then_trees, b"").is_empty


def _content(tree: VersionTree, record: InodeRecord) -> bytes:
    assert record.content is not None
    return read_content(tree.chunk_nodes, record.content, 0, record.size)


def _check_contents(plan: InPlacePlan, then: VersionTree, now: VersionTree) -> None:
    """Writing it makes of each file what it was."""
    assert plan.files is not None
    written = plan.files.files(plan.with_content, show_nothing, rewritten=plan.with_content)
    new = {fid for fid in plan.names.new if plan.files.records[fid].content is not None}
    made = plan.files.files(new, show_nothing, with_data=True)
    for fid in (*written, *made):
        record = plan.files.records[fid]
        has = bytearray(_content(now, now.record(fid)) if fid in written else b"")
        del has[record.size :]
        has += bytes(record.size - len(has))
        for offset, data in written[fid].unlike() if fid in written else made[fid].pieces():
            has[offset : offset + len(data)] = data
        for offset, length in written[fid].holes() if fid in written else ():
            has[offset : offset + length] = bytes(length)
        assert has == _content(then, record)
        state = (written | made)[fid].state
        assert (state.uid, state.size) == (record.uid, record.size)


def _plan(
    then: VersionTree, then_trees: Trees, now: VersionTree, now_trees: Trees, top: bytes
) -> InPlacePlan | None:
    try:
        return plan_in_place(then, then_trees, now, now_trees, top)
    except ConflictError:
        # A directory above it is none now.
        parts = top.split(b"/")
        above = {b"/".join(parts[:end]) for end in range(1, len(parts))}
        is_now = _paths(_names(now))
        assert any(one in is_now and now.record(is_now[one]).type != 0o040000 for one in above)
        return None
