"""The private parts of trio that the request loop (``trio._core``) and connections
(``SSLStream._outgoing``) use: where another version of trio has them otherwise, these fail first,
and the upper bound in pyproject.toml stays."""

import os
import select
import ssl
import threading

import trio
import trio.testing

from fusejournal.layer import request_loop
from fusejournal.wire.connection import LingeringStream, unsent


async def test_the_descriptor_tells_of_what_tasks_wait_for() -> None:
    fd = request_loop._events_fd()
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]"
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    await trio.testing.wait_all_tasks_blocked()
    assert poll.poll(0) == []
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    thread = threading.Thread(target=token.run_sync_soon, args=(done.set,))
    thread.start()
    thread.join()
    assert poll.poll(10_000) == [(fd, select.POLLIN)]
    await done.wait()


async def test_the_descriptor_tells_of_a_socket_that_a_task_reads() -> None:
    ours, theirs = trio.socket.socketpair()
    poll = select.poll()
    poll.register(request_loop._events_fd(), select.POLLIN)
    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert poll.poll(0) == []
            os.write(theirs.fileno(), b"x")  # with no await, in which trio would read it
            assert len(poll.poll(10_000)) == 1


async def test_what_a_handshake_would_send_is_left_to_be_read() -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        transport = LingeringStream(trio.SocketStream(ours))
        stream = trio.SSLStream(transport, ssl.create_default_context(), server_hostname="mirror")
        assert isinstance(stream._outgoing, ssl.MemoryBIO)
        stream._outgoing.write(b"alert")
        assert unsent(stream) == b"alert"
