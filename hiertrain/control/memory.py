"""Memory that is kept: what a worker's C library is told when the worker starts.

By default glibc gives large blocks back to the system, which hands them out again page by page, each set to zeros on
first use. A training iteration frees and asks for the same blocks every time: a plain loop of AlexNet takes up to 1.5
times as long for it, and a layer's time jumps at the number of samples whose blocks are large. Other C libraries take
no notice.
"""

import ctypes
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

PROCESS = Path("/proc/self")  # of Linux: proc(5)

# In bytes: blocks below the first come from the heap, whose end is given back only when more than the second is free.
# It grows by at least the third.
KEPT: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(2**31),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


def worker_environment(kept: bool) -> dict[str, str]:
    """This process's environment for a worker that it starts: with memory kept, or as the system is without it."""
    others = {name: value for name, value in os.environ.items() if name not in KEPT}
    return {**others, **KEPT} if kept else others


def is_kept() -> bool:
    """Whether this process was started with memory kept, and has the C library that knows how."""
    return platform.libc_ver()[0] == "glibc" and all(os.environ.get(name) == value for name, value in KEPT.items())


def resident_bytes() -> int | None:
    """What this process holds in memory, after it has given back what is free; its peak counts anew from here.

    None where the system does not tell: it must be Linux, with glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return None
    ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5")
        return _status_bytes("VmRSS")
    except OSError:
        return None


def peak_bytes() -> int:
    """The most that this process has held in memory since it asked for ``resident_bytes``."""
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    (size,) = re.findall(rf"^{field}:\s+(\d+) kB$", (PROCESS / "status").read_text(), flags=re.MULTILINE)
    return 1024 * int(size)
