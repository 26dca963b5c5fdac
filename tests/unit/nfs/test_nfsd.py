"""The NFS server's clients, as nfsd's files tell of them."""

from pathlib import Path

import pytest

from fusejournal.nfs.nfsd import idle_clients


@pytest.mark.parametrize("gone", ["1", "2"])  # whichever is read last
def test_a_client_that_goes_while_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """No client is taken for idle then: another entry of its name may not have been read."""
    monkeypatch.setenv("FUSEJOURNAL_NFS_ROOT", str(tmp_path))
    clients = tmp_path / "proc/fs/nfsd/clients"
    for number in ("1", "2"):
        (clients / number).mkdir(parents=True)
        (clients / number / "info").write_text('name: "one"\n')
        if number != gone:
            (clients / number / "states").write_text("")
    assert idle_clients() == frozenset()
    (clients / gone / "states").write_text("")
    assert idle_clients() == {b"one"}
    (clients / gone / "states").write_text("- 0x1: { type: open }\n")
    assert idle_clients() == frozenset()
