"""Positions as texts are read back, and no other text is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusejournal.types import EPOCH_MAX, Epoch, Position, Seq, position_of_text

POSITIONS = st.builds(
    Position,
    st.integers(0, EPOCH_MAX).map(Epoch),
    st.integers(0, 2**63 - 1).map(Seq),
    st.integers(0, 2**64 - 1),
)


@given(POSITIONS)
def test_a_position_is_read_back(position: Position) -> None:
    assert position_of_text(str(position)) == position


@given(st.from_regex(r"\A[0-9]{1,20}/[0-9]{1,20}/[0-9a-fA-F]{15,17}\Z") | st.text())
def test_a_text_is_a_position_or_refused(text: str) -> None:
    try:
        position = position_of_text(text)
    except ValueError:
        return
    assert position_of_text(str(position)) == position
    assert [int(part, base) for part, base in zip(text.split("/"), (10, 10, 16), strict=True)] == [
        *position
    ]


@pytest.mark.parametrize(
    "text",
    [
        "1/2",
        "1/2/3",
        "1/2/000000000000000g",
        "1/2/000000000000000A",
        "-1/2/0000000000000000",
        "1/2/0000000000000000\n",
        f"{EPOCH_MAX + 1}/2/0000000000000000",
        f"1/{1 << 63}/0000000000000000",
        "\u0661/2/0000000000000000",
    ],
)
def test_no_position(text: str) -> None:
    with pytest.raises(ValueError, match="is no position"):
        position_of_text(text)
