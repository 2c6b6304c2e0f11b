"""What glibc's malloc does with freed blocks; other C libraries do as they do."""

import contextlib
import ctypes

# Parameters of mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT_BYTES, LARGE_BYTES = 1 << 27, 1 << 17


def keep_freed_blocks() -> None:
    """Blocks of the size of tiles are used again, so that the system need not clear new pages for each of them."""
    _set_option(M_MMAP_THRESHOLD, MOST_KEPT_BYTES // 4)
    _set_option(M_TRIM_THRESHOLD, MOST_KEPT_BYTES)


def give_back_freed_blocks() -> None:
    """Large blocks are mapped apart and go back to the system when they are freed, what lies free at the end too."""
    _set_option(M_MMAP_THRESHOLD, LARGE_BYTES)
    _set_option(M_TRIM_THRESHOLD, LARGE_BYTES)
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _set_option(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(option, value)
