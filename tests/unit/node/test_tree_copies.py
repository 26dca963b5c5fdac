"""The notes of a layer about a copy of its tree, whose messages it only passes on."""

import pytest

from fusejournal.errors import WireError
from fusejournal.node.tree_copies import _Copy
from fusejournal.types import Seq
from fusejournal.versions.block_source import OfferedTree
from fusejournal.wire.block_messages import Blocks, TreeProgress, TreeReport
from tests.golden.store_objects import VERSION


async def test_how_far_it_is() -> None:
    copy = _Copy("east")
    assert copy.describe() == "copies the tree: asks which tree there is"
    copy.note(TreeProgress(1200, None).told())
    assert copy.describe() == "copies the tree: waits for a version of it: 1,200 entries read"
    copy.note(OfferedTree(VERSION, "", Seq(1), Seq(9), 1).told())
    copy.note(Blocks((5,), (5,), b"12345"))
    assert copy.tree_bytes == VERSION.content_bytes
    assert copy.describe().startswith("copies the tree: 0.0 MB sent, of no more than ")


@pytest.mark.parametrize("fields", [b"", b"5", b'{"done": []}', b'{"version": "{}"}'])
def test_a_report_that_cannot_be_read_is_an_error_of_the_session(fields: bytes) -> None:
    with pytest.raises(WireError, match="that cannot be read"):
        _Copy("east").note(TreeReport(fields))
