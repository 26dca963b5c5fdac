"""The audit of the page: what a system crash leaves of it."""

from pathlib import Path

from fusejournal.console.audit import Audit


def test_a_line_after_half_a_line(tmp_path: Path) -> None:
    """The half line of a system that crashed swallows nothing that is written after it."""
    path = tmp_path / "audit"
    audit = Audit(path)
    audit.note("anna", "::1", "first")
    audit.note("anna", "::1", "lost")
    path.write_bytes(path.read_bytes()[:-9])
    audit.note("anna", "::1", "next")
    assert [line["what"] for line in audit.newest(9)] == ["next", "first"]
