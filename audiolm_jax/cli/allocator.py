"""Makes the C library's allocator keep freed memory.

On a CPU a jitted program takes its temporary buffers from `malloc` at every call. glibc fetches large blocks from the
system and returns them at once (mallopt(3): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD), so the kernel clears the same pages
again in every step: 30,000 page faults a second and 18 % of the time of training 2 million parameters on a core (glibc
2.36; with this 45 and nothing). The memory that it keeps is at most the peak in use.
"""

import ctypes
import gc
import sys

# glibc's malloc.h. Without mappings all blocks come from the one heap that grows by the padding and is not trimmed.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Sets it for this process. Returns whether the allocator supports it (glibc on Linux)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: LARGEST, M_TOP_PAD: 64 << 20, M_ARENA_MAX: 1}
    return 0 not in [mallopt(option, value) for option, value in options.items()]


def collect_rarely() -> None:
    """For a command of seconds: the objects that imports and tracing make stay, and Python's collector of cycles looks
    through them again and again, a twentieth of the time until a first sentence is spoken."""
    gc.set_threshold(100_000, 50, 50)
