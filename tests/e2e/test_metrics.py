"""Metrics as Prometheus reads them, of a real node."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.layer import Layer

pytestmark = pytest.mark.mount


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_of_a_primary(tmp_path: Path) -> None:
    port = _free_port()
    with Layer(tmp_path) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}", "--peer", "east=127.0.0.1:9", "--insecure")
        volume = ("volume", "volume")
        before = _scrape(port)
        with open(layer.mountpoint / "file", "wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        after = _scrape(port)
        assert (
            after["fusejournal_head_seq", (volume,)]
            == before["fusejournal_head_seq", (volume,)] + 2
        )
        assert (
            after["fusejournal_fsync_seconds_count", (volume,)]
            == before["fusejournal_fsync_seconds_count", (volume,)] + 1
        )
        assert (
            after["fusejournal_fsync_seconds_bucket", (("le", "+Inf"), volume)]
            == after["fusejournal_fsync_seconds_count", (volume,)]
        )
        peer = ("peer", "east")
        assert after["fusejournal_peer_lag_entries", (peer, volume)] > 0
        assert after["fusejournal_peer_state", (peer, ("state", "connecting"), volume)] == 1
        assert after["fusejournal_peer_batches_total", (peer, volume)] == 0
        layer.stop()


def test_metrics_are_for_this_machine_alone(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        done = layer.run(*layer.mount_arguments("--metrics", "0.0.0.0:7799", "-f"), check=False)
        assert done.returncode == 2
        assert "loopback" in done.stderr
        assert not layer.is_mounted()


_NOBODY = 65534


def _held_by_nobody(port: int, count: int) -> subprocess.Popen[str]:
    """A process of the user nobody that holds connections, and has begun a request on each; it says
    when it does. It ends with its input."""
    script = (
        "import socket, sys\n"
        f"held = [socket.create_connection(('127.0.0.1', {port}), 10) for _ in range({count})]\n"
        "for one in held:\n"
        "    try: one.send(b'GET /metrics HTTP/1.1\\r\\n')\n"
        "    except OSError: pass\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        user=_NOBODY,
        group=_NOBODY,
        extra_groups=[],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in text for child in one.read_text().split()]


def _metrics_process(layer: Layer) -> int | None:
    for pid in _children(layer.pid):
        if b"metrics_server" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return None


def _until(what: str, condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_who_holds_connections_to_the_metrics_takes_nothing_from_the_layer(tmp_path: Path) -> None:
    """Any user of the machine may connect; with few descriptors and threads left to the layer, it
    serves its files, and even the metrics, all the same."""
    port = _free_port()
    with Layer(tmp_path) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}")
        resource.prlimit(layer.pid, resource.RLIMIT_NOFILE, (96, 96))
        _scrape(port)
        (layer.mountpoint / "file").write_text("x")
        open_before = len(os.listdir(f"/proc/{layer.pid}/fd"))
        threads_before = len(os.listdir(f"/proc/{layer.pid}/task"))
        with _held_by_nobody(port, 400) as nobody:
            for number in range(50):
                (layer.mountpoint / "file").write_text(str(number))
            assert len(os.listdir(f"/proc/{layer.pid}/fd")) <= open_before + 4
            assert len(os.listdir(f"/proc/{layer.pid}/task")) <= threads_before + 4
            assert _scrape(port)["fusejournal_head_seq", (("volume", "volume"),)] > 50
            assert nobody.stdin is not None
            nobody.stdin.close()
        layer.stop()


def test_the_metrics_process_has_no_powers_and_the_life_of_its_layer(tmp_path: Path) -> None:
    port = _free_port()
    with Layer(tmp_path) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}")
        _scrape(port)
        pid = _metrics_process(layer)
        assert pid is not None
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{_NOBODY}\t{_NOBODY}\t{_NOBODY}\t{_NOBODY}" in status
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
        # One that dies is followed by another, on the same socket.
        os.kill(pid, signal.SIGKILL)
        _until("another", lambda: _metrics_process(layer) not in (None, pid))
        _scrape(port)
        # One whose layer dies, however, ends with it.
        pid = _metrics_process(layer)
        layer.kill()
        _until("its end", lambda: not Path(f"/proc/{pid}").exists())


def test_metrics_end_with_an_orderly_stop(tmp_path: Path) -> None:
    port = _free_port()
    with Layer(tmp_path) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}")
        pid = _metrics_process(layer)
        layer.stop()
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"\xff\x00nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 20_000, b"HTTP/1.1 400 "),
    ],
)
def test_what_is_asked_of_the_metrics(
    metrics_port: int, request_bytes: bytes, answer: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", metrics_port), 10) as connection:
        connection.sendall(request_bytes)
        assert connection.recv(len(answer)) == answer


@pytest.fixture(scope="module")
def metrics_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a layer that runs."""
    port = _free_port()
    with Layer(tmp_path_factory.mktemp("metrics")) as layer:
        layer.start("--metrics", f"127.0.0.1:{port}")
        yield port
        layer.stop()
