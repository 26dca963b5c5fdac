"""A user without privileges who takes all that can be had: the layer serves others all the same,
and nothing of it grows without a bound."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.layer import Layer

pytestmark = pytest.mark.mount

_NOBODY = 65534
_DESCRIPTORS = 512
_GREEDY = """
import os, sys, threading, time
threading.stack_size(65536)
os.chdir(sys.argv[1])
end = time.monotonic() + 3

def take(number):
    dice = number
    held = []
    while time.monotonic() < end:
        dice = dice * 1103515245 + 12345 & 0x7FFFFFFF
        name = f"n{number}.{dice % 20}"
        try:
            if dice % 7 == 0:
                os.mkdir(name + ".d")
            elif dice % 7 == 1:
                os.setxattr(name, "user.x", bytes(3000))
            elif dice % 7 == 2 and len(held) < 40:
                held.append(os.open(name, os.O_RDWR | os.O_CREAT, 0o644))
            elif dice % 7 == 3 and held:
                os.pwrite(held[dice % len(held)], bytes(65536), 0)
            elif dice % 7 == 4 and held:
                os.fsync(held[dice % len(held)])
            elif dice % 7 == 5:
                os.listdir(".")
            else:
                os.rename(name, name + "r")
        except OSError as error:
            if error.errno in (103, 107):
                print("the layer is gone", flush=True)
                os._exit(1)

threads = [threading.Thread(target=take, args=(n,), daemon=True) for n in range(48)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def _memory_mib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) >> 10
    raise AssertionError("no VmRSS")


def test_who_takes_all_there_is(tmp_path: Path) -> None:
    with Layer(tmp_path) as layer:
        layer.prefix = ("sh", "-c", f'ulimit -n {_DESCRIPTORS} && exec "$@"', "sh")
        layer.start()
        layer.mountpoint.chmod(0o777)
        for directory in (tmp_path, *tmp_path.parents):
            if directory.owner() == "root" and not directory.stat().st_mode & 1:
                directory.chmod(directory.stat().st_mode | 0o011)
        memory_before_mib = _memory_mib(layer.pid)
        greedy = subprocess.Popen(
            [sys.executable, "-I", "-c", _GREEDY, str(layer.mountpoint)],
            user=_NOBODY,
            group=_NOBODY,
            extra_groups=[],
            stdout=subprocess.PIPE,
            text=True,
        )
        served = 0
        while greedy.poll() is None:
            (layer.mountpoint / f"mine{served % 50}").write_text("mine")
            served += 1
        assert greedy.communicate()[0] == ""
        assert greedy.returncode == 0
        assert served > 5, "others were kept waiting"
        assert len(os.listdir(f"/proc/{layer.pid}/fd")) <= _DESCRIPTORS
        assert len(os.listdir(f"/proc/{layer.pid}/task")) < 20
        assert _memory_mib(layer.pid) - memory_before_mib < 200
        layer.stop()
