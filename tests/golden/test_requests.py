"""Requests as kernels made them, and as they were answered: asked again of a new volume they come
to the same, but for times and the like (tests/support/recorded.py, which makes the files)."""

import socket
from collections import Counter
from pathlib import Path

import pytest
import trio

from fusejournal.layer.handlers import Handlers
from fusejournal.layer.kernel_protocol import HANDLE_KILLPRIV_V2, UNANSWERED, Opcode
from fusejournal.layer.open_files import OpenFiles, new_table
from fusejournal.layer.request_loop import RequestLoop
from tests.support.patience import PATIENCE_SECONDS
from tests.support.recorded import Recorded, comparable, read_recorded
from tests.support.volumes import open_volume

_RECORDS = sorted(Path(__file__).parent.glob("requests-*.json"))
_REPLY_BYTES_MAX = 1 << 20


class _Handshake:
    init_flags = HANDLE_KILLPRIV_V2
    request_bytes_max = _REPLY_BYTES_MAX

    def __init__(self, fd: int) -> None:
        self.fd = fd

    async def greet(self) -> bytes:
        return b""


async def _ask_again(kernel: socket.socket, recorded: Recorded) -> Recorded:
    kernel.send(recorded.request)
    if not recorded.reply:
        return Recorded(recorded.request, b"")
    with trio.fail_after(PATIENCE_SECONDS):
        await trio.lowlevel.wait_readable(kernel)
    return Recorded(recorded.request, kernel.recv(_REPLY_BYTES_MAX))


@pytest.mark.parametrize("path", _RECORDS, ids=lambda path: path.stem)
async def test_what_was_asked_is_answered_again(path: Path, tmp_path: Path) -> None:
    recorded = read_recorded(path)
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with open_volume(tmp_path) as opened, device, kernel:
        for end in (device, kernel):
            end.setblocking(False)
        handlers = Handlers(
            opened.volume,
            opened.durability,
            opened.opening.importer,
            OpenFiles(new_table()),
            opened.policy,
        )
        loop = RequestLoop(_Handshake(device.fileno()), handlers)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop.run)
            for one in recorded:
                again = await _ask_again(kernel, one)
                assert comparable(again) == comparable(one), one.opcode
            loop.leave()


def test_every_kind_of_request_is_among_them() -> None:
    """But for those that kernels have others for."""
    kinds: Counter[int] = Counter()
    for path in _RECORDS:
        for one in read_recorded(path):
            kinds[one.opcode] += 1
            assert bool(one.reply) == (one.opcode not in UNANSWERED)
    missing = {opcode for opcode in Opcode if opcode not in kinds}
    assert missing <= {Opcode.RENAME, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.FORGET}
