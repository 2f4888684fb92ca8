"""Measurement of the host's TSC frequency.

Under software emulation a guest reads the host's counter but has no timer to calibrate it against:
calibration never ends. So the kernel command line carries the frequency (`command.py`).
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from functools import lru_cache

from polydev.shared.errors import VmmFailed

_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx,32; or rax,rdx; ret
_ROUNDS = 3
_ROUND_S = 0.02


@lru_cache(maxsize=1)
def tsc_khz() -> int:
    """Measure the frequency in kHz, once, in 60 ms. Blocking. Raises: VmmFailed."""
    if platform.machine() != "x86_64":
        raise VmmFailed(f"Software emulation needs an x86-64 host, not {platform.machine()}")
    protection = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    with mmap.mmap(-1, mmap.PAGESIZE, prot=protection) as page:
        page.write(_READ_TSC)
        start = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        # The median drops a round that was interrupted between two reads.
        rounds = sorted(_round(read) for _ in range(_ROUNDS))
        del start
    return round(rounds[_ROUNDS // 2])


def _round(read: Callable[[], int]) -> float:
    first, start_ns = read(), time.monotonic_ns()
    time.sleep(_ROUND_S)
    last, end_ns = read(), time.monotonic_ns()
    return (last - first) * 1_000_000 / (end_ns - start_ns)
