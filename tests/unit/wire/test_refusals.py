"""The codes of refusals: those of a later version, and the pages that have each."""

from pathlib import Path

import pytest

import fusejournal
from fusejournal.wire.frames import Refusal
from fusejournal.wire.refusals import RefusalCode
from fusejournal.wire.session import RefusedError

_PACKAGE = Path(fusejournal.__file__).parent


@pytest.mark.parametrize("code", RefusalCode)
def test_a_code_is_read_as_it_is_sent(code: RefusalCode) -> None:
    sent = RefusedError(code, "why").message()
    assert type(sent.code) is str
    assert sent == Refusal(code.value, "why")
    assert RefusedError.of(sent).code is code


def test_a_code_of_a_later_version_is_another() -> None:
    error = RefusedError.of(Refusal("later", "why"))
    assert (error.code, str(error)) == (RefusalCode.OTHER, "why")


@pytest.mark.parametrize(
    ("page", "header"),
    [
        ("wire/PROTOCOL.md", "| code of a REFUSAL | meaning |"),
        ("MANUAL.md", "| why | what to do |"),
    ],
)
def test_the_pages_have_each_code(page: str, header: str) -> None:
    _, found, rest = (_PACKAGE / page).read_text().partition(f"\n{header}\n")
    assert found
    rows = rest.partition("\n\n")[0].splitlines()[1:]
    listed = [row.split("|")[1].strip(" `") for row in rows]
    assert sorted(listed) == sorted(set(RefusalCode) - {RefusalCode.OTHER})
