"""Files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

_number = count()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`. What was written there reaches the disk and becomes `path`; after an error it goes.

    The name tells host and process, so that `sweep_up` knows what a killed process has left.
    """
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{next(_number)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep_up(folder: Path) -> None:
    """Remove what processes of this host that are no more were writing in `folder` when they were killed."""
    for path in folder.glob(".*.tmp"):
        told = re.fullmatch(r"\..*\.([^.]*)\.(\d+)\.\d+\.tmp", path.name)
        if told and told[1] == _host() and not _alive(int(told[2])):
            with suppress(OSError):
                path.unlink()


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:                     # another user's
        return True
    return True
