"""How much memory can be had, by the machine and by the control groups that the process is in."""

from collections.abc import Iterator
from pathlib import Path

# Where the control groups are mounted, and where the kernel says in which of them this process is.
CGROUP_DIR = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# Of control groups of version 2 and 1: the limit, the use, and the file cache in it that the kernel gives back.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def free_bytes() -> int:
    """The memory that can be had without swapping, by the machine and by every group around this process."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min([free, *(left for directory in _group_dirs() for left in _left_in(directory))]))


def _group_dirs() -> Iterator[Path]:
    """The directories of the process's own groups and of those that they are in, as far as they are to be seen."""
    lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines() if OWN_GROUPS.is_file() else []
    for line in [*lines, "0::/"]:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = CGROUP_DIR / "memory" if controllers else CGROUP_DIR
        group = Path(name.lstrip("/"))
        # Within a container the name may be that outside of it, where only the mount itself is to be seen.
        yield from (mount / part for part in (group, *group.parents) if ".." not in part.parts)
    yield CGROUP_DIR / "memory"


def _left_in(directory: Path) -> Iterator[int]:
    """What a group with a limit has left."""
    for limit_name, used_name, cache_name in FILES:
        limit_path, used_path = directory / limit_name, directory / used_name
        if limit_path.is_file() and used_path.is_file() and (limit := limit_path.read_text("ascii").strip()) != "max":
            yield int(limit) - int(used_path.read_text("ascii")) + _stat(directory / "memory.stat", cache_name)


def _stat(path: Path, name: str) -> int:
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)
