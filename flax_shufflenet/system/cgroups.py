"""Where Linux keeps what it lets a process's group have, and the groups around it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's cgroup and those around it, of both versions, that have this ``controller``'s files;
    they need not be there. ``root`` is where the system's files lie."""
    with contextlib.suppress(OSError, ValueError):  # another system, or one that hides them
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            mounted = "sys/fs/cgroup" if not controllers else f"sys/fs/cgroup/{controllers}"
            if not controllers or controller in controllers.split(","):
                # In a container the group's own name may be the host's, and only the top is there.
                for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
                    yield root / mounted / folder.relative_to("/")
