"""Values of KEY=VALUE as commands without a config take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clustersim.types import InputError


def whole_number(key: str, text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"{key}={text}: must be a whole number from 0 up")
    return int(text)


def true_or_false(key: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise InputError(f"{key}={text}: must be true or false")
    return text == "true"


def with_value(flag: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """What follows a flag (`--flag VALUE`, `--flag=VALUE`; None where it is not there), and the other arguments."""
    found, others, rest = None, [], iter(arguments)
    for text in rest:
        if text == flag:
            found = next(rest, "")
        elif text.startswith(f"{flag}="):
            found = text.partition("=")[2]
        else:
            others.append(text)
    if found == "":
        raise InputError(f"{flag}: needs a value")
    return found, others


def plain_value(text: str) -> Any:
    """A value of an option as it is meant: whole number, true, false, or text."""
    if text.removeprefix("-").isdecimal():
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def own_folder(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The user's own folder of options (`--config-dir`), and the other arguments."""
    own, rest = with_value("--config-dir", arguments)
    if own is not None and not Path(own).is_dir():
        raise InputError(f"--config-dir {own}: there is no such folder")
    return None if own is None else Path(own), rest
