"""Asynchronous direct writes, by the kernel's own calls.

Source: io_submit(2); include/uapi/linux/aio_abi.h."""

import ctypes
import os
import platform
from collections.abc import Sequence

_NUMBERS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = _NUMBERS.get(platform.machine(), (-1, -1, -1, -1))
_PWRITE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Iocb(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class DirectWriter:
    """Up to *depth* writes at once of *size* bytes each. Use as a context manager."""

    def __init__(self, depth: int, size: int) -> None:
        self._size = size
        raw = ctypes.create_string_buffer((depth + 1) * size)
        start = -ctypes.addressof(raw) % size
        self._raw = raw
        self._address = ctypes.addressof(raw) + start
        self._memory = memoryview(raw).cast("B")[start:]
        self._context = ctypes.c_ulong(0)
        self._depth = depth

    def __enter__(self) -> "DirectWriter":
        _call(_SETUP, ctypes.c_uint(self._depth), ctypes.byref(self._context))
        return self

    def __exit__(self, *_: object) -> None:
        _call(_DESTROY, self._context)

    def write(self, fd: int, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Write *blocks*, each an offset and its content, all at once; returns when all are."""
        iocbs = (_Iocb * len(blocks))()
        pointers = (ctypes.POINTER(_Iocb) * len(blocks))()
        for number, (offset, data) in enumerate(blocks):
            start = number * self._size
            self._memory[start : start + self._size] = data
            iocbs[number] = _Iocb(
                data=number,
                opcode=_PWRITE,
                fd=fd,
                buffer=self._address + start,
                bytes=self._size,
                offset=offset,
            )
            pointers[number] = ctypes.pointer(iocbs[number])
        done = 0
        while done < len(blocks):
            done += _call(
                _SUBMIT,
                self._context,
                ctypes.c_long(len(blocks) - done),
                ctypes.byref(pointers, done * ctypes.sizeof(ctypes.c_void_p)),
            )
        events = (_Event * len(blocks))()
        done = 0
        while done < len(blocks):
            done += _call(
                _GETEVENTS,
                self._context,
                ctypes.c_long(1),
                ctypes.c_long(len(blocks) - done),
                ctypes.byref(events, done * ctypes.sizeof(_Event)),
                None,
            )
        for event in events:
            if event.result != self._size:
                raise OSError(int(-event.result), "an asynchronous write")
