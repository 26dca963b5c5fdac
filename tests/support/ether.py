"""A bad cable: passes Ethernet frames between two TAP devices, late, at a rate, and not all.

What ``tc netem`` and ``tbf`` do, for kernels that are built without netem. A process of its own::

    ether.py NAMESPACE DEVICE NAMESPACE DEVICE DELAY_SECONDS LOSS BYTES_PER_SECOND SEED

Each direction has a queue of a quarter of a second at its rate (at least 64 KiB, a rate of 0: no
limit); what comes when that is full is dropped, as in a real device. Ends with its input.

Source: tuntap.rst, netlink(7), setns(2)."""

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES_MAX = 65536
_QUEUE_SECONDS = 0.25
_QUEUE_BYTES_MIN = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


def open_tap(namespace: str, device: str) -> int:
    """A descriptor of the TAP device *device*, which is there, in *namespace*."""
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(there)
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI))
    finally:
        _enter(here)
        os.close(there)
        os.close(here)
    return fd


def _enter(fd: int) -> None:
    if _libc.setns(fd, 0):
        raise OSError(ctypes.get_errno(), "setns")


class Direction:
    """Frames on their way to the device *out*."""

    def __init__(self, out: int, delay: float, loss: float, rate: float, dice: random.Random):
        self._out = out
        self._delay, self._loss, self._rate = delay, loss, rate
        self._dice = dice
        self._free_at = 0.0
        self._waiting: list[tuple[float, int, bytes]] = []
        self._count = 0

    def take(self, frame: bytes, now: float) -> None:
        """One frame goes on its way, or is lost."""
        if self._dice.random() < self._loss:
            return
        sent = now
        if self._rate:
            backlog = (max(self._free_at, now) - now) * self._rate
            if backlog > max(self._rate * _QUEUE_SECONDS, _QUEUE_BYTES_MIN):
                return
            sent = self._free_at = max(self._free_at, now) + len(frame) / self._rate
        self._count += 1
        heapq.heappush(self._waiting, (sent + self._delay, self._count, frame))

    def give(self, now: float) -> float | None:
        """Hand over what has arrived; the seconds until the next does."""
        while self._waiting:
            due, _, frame = self._waiting[0]
            if due > now:
                return due - now
            heapq.heappop(self._waiting)
            try:
                os.write(self._out, frame)
            except OSError:
                continue  # the device is down, or its queue is full
        return None


def main() -> None:
    one, one_device, other, other_device, delay, loss, rate, seed = sys.argv[1:]
    fds = open_tap(one, one_device), open_tap(other, other_device)
    dice = random.Random(int(seed))
    ways = {
        fd: Direction(out, float(delay), float(loss), float(rate), dice)
        for fd, out in (fds, fds[::-1])
    }
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    poll.register(0, select.POLLIN)
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        waits = [wait for way in ways.values() if (wait := way.give(now)) is not None]
        for fd, _ in poll.poll(1000 * min(waits) + 0.1 if waits else None):
            if fd == 0:
                return  # the process that wanted this is gone
            for _ in range(64):
                try:
                    frame = os.read(fd, _FRAME_BYTES_MAX)
                except OSError:
                    break
                ways[fd].take(frame, time.monotonic())


if __name__ == "__main__":
    main()
