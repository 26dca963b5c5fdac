"""Typed answers: what is none ends in one clear error."""

import pytest

from fusejournal.control.reply import Done
from fusejournal.errors import FusejournalError
from fusejournal.node.replies import HookOutcome
from fusejournal.wire.code_state import CodeState


@pytest.mark.parametrize(
    "line",
    [b"", b"Traceback", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"ok": 1}', b'{"ok": null}'],
)
def test_a_line_that_is_no_answer(line: bytes) -> None:
    with pytest.raises(FusejournalError, match=r"^the layer answers what is no reply: b'"):
        Done.from_line("the layer", line)


def test_a_line_that_lacks_a_field() -> None:
    with pytest.raises(FusejournalError, match=r"^its process answers what is no reply"):
        HookOutcome.from_line("its process", '{"status": 0}')


def test_a_line_that_is_one() -> None:
    line = b'{"status": 2, "output": "in use", "later": []}\n'
    assert HookOutcome.from_line("its process", line) == HookOutcome(status=2, output="in use")


def test_a_state_of_a_later_version_is_kept() -> None:
    later = CodeState("renewed")
    assert (later, later.value) == ("renewed", "renewed")
    assert later not in list(CodeState)
