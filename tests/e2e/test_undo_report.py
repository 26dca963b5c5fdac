"""The report of an undo on a live volume: it names what came between."""

import json
import os
from pathlib import Path

import pytest

from fusejournal.cli.main import main
from fusejournal.errors import ConflictError, UndoOverlapError
from fusejournal.replay import undo_files
from tests.e2e.test_undo_beside_others import at_call, elsewhere, planned
from tests.support.forked import Forked
from tests.support.layer import Layer
from tests.support.volumes import show_nothing

pytestmark = pytest.mark.mount


def test_all_that_came_between_is_named(live: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [live.mountpoint / name for name in "abc"]
    for file in files:
        file.write_text("good")
    first = live.head_seq() + 1
    for file in files:
        file.chmod(0o600)
    undo, plan = planned(live, first)
    left = files[:2]

    def on_step(reached: str) -> None:
        if reached == "between" and left:
            elsewhere(lambda: os.setxattr(left[0], "user.k", b"theirs"))
            left.pop(0)

    monkeypatch.setattr(undo_files, "on_step", on_step)
    with pytest.raises(UndoOverlapError, match=r"/a: .* and 1 more"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert [undo.path_of(one) for one in plan.overlaps] == [b"a", b"b"]
    assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o644"] * 3


def test_what_came_between_is_named_also_where_the_undo_stops(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [live.mountpoint / name for name in "ab"]
    for file in files:
        file.write_text("good")
    first = live.head_seq() + 1
    for file in files:
        file.write_text("bad, and longer")
    undo, plan = planned(live, first)

    def append() -> None:
        for file in files:
            with file.open("a") as opened:
                opened.write("x")

    at_call("between", monkeypatch, append)
    with pytest.raises(ConflictError, match="/b: another process changed it since"):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert [undo.path_of(one) for one in plan.overlaps] == [b"a"]


def test_an_undo_that_stops_before_it_begins_leaves_nothing(
    live: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = live.mountpoint / "f"
    file.write_text("good")
    first = live.head_seq() + 1
    file.write_text("bad, and longer")
    undo, plan = planned(live, first)
    at_call("rewrite", monkeypatch, lambda: file.write_text("theirs"))
    with pytest.raises(ConflictError):
        undo.carry_out(plan, live.mountpoint, show_nothing)
    assert os.listdir(live.mountpoint) == ["f"]


def change_beside_undo() -> None:
    """The program, whose undo has another process give the file MEDDLED an attribute between its
    first look and its first change."""
    left = [os.environ["MEDDLED"]]

    def on_step(reached: str) -> None:
        if reached == "between" and left:
            file = left.pop()
            elsewhere(lambda: os.setxattr(file, "user.k", b"theirs"))

    undo_files.on_step = on_step
    main()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_command_names_what_came_between(
    live: Layer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    file = live.mountpoint / "f"
    file.write_text("good")
    first = live.head_seq() + 1
    file.chmod(0o600)
    command = Forked(
        ["undo", "volume", str(first), "--apply", *options],
        {**live.environment, "MEDDLED": str(file)},
        out=tmp_path / "out",
        err=tmp_path / "err",
        program=f"{__name__}:change_beside_undo",
    )
    assert command.wait(60) == 22
    assert file.stat().st_mode & 0o777 == 0o644
    (theirs,) = (entry["seq"] for entry in live.entries() if entry["op"] == "setxattr")
    out, err = (tmp_path / "out").read_text(), (tmp_path / "err").read_text()
    assert f"overlaps    /f: entry {theirs} by pid" in err
    if options:
        done = json.loads(out)
        assert [(one["seq"], one["path"]) for one in done["overlaps"]] == [(theirs, "f")]
        assert done["applied"]["from_seq"] == first + 1
    else:
        assert "done, as entries" in out
        assert out.rstrip().endswith("--apply")
