"""Files that are whole or not there: written under another name, then renamed."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from clustersim.types import InputError

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


def not_drawn(error: OSError | ValueError) -> str:
    """Why matplotlib has not written a picture."""
    if isinstance(error, OSError):
        return f"cannot be written ({error.strerror})"
    return "is no kind of picture that can be drawn; its name must end in .png, .svg or .pdf"


def check_writable(path: Path, said: str) -> None:
    """Before work that takes long: whether `path`, a file or a folder to come, can be written. Leaves nothing behind.

    Raises:
        InputError: it cannot; `said` is how the user named it.
    """
    made: list[Path] = []
    try:
        home = path if path.is_dir() else path.parent
        for folder in reversed([home, *home.parents]):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        with replacing(home / ".writable") as temporary:
            temporary.touch()
        (home / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{said}: cannot be written ({error.strerror})") from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


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
