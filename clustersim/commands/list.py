"""`clustersim list`: the options of the config groups."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size

from clustersim.places import groups, options_of


def folder_of(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """The user's own folder of options, and the other arguments."""
    if not any(text.startswith("--config-dir") for text in arguments):
        return None, arguments
    from clustersim.commands.arguments import with_value
    from clustersim.types import InputError

    own, rest = with_value("--config-dir", arguments)
    if own is not None and not Path(own).is_dir():
        raise InputError(f"--config-dir {own}: there is no such folder")
    return None if own is None else Path(own), rest


def command(arguments: list[str]) -> int:
    own, rest = folder_of(arguments)
    asked = [text for text in rest if text != "--json"]
    known = groups(own)
    for group in asked:
        if group not in known:
            from clustersim.pick import did_you_mean
            from clustersim.types import InputError

            raise InputError(f"list {group}: there is no such group{did_you_mean(group, known)} (known: {', '.join(known)})")
    found = {group: options_of(group, own) for group in asked or known}
    if "--json" in rest:
        print(json.dumps(found, indent=2))
        return 0
    for group in found:
        print(f"{group}: {known[group]}")
        for name, line in found[group].items():
            print(_entry(f"  {name:<18} ", line))
    return 0


def _entry(name: str, line: str) -> str:
    """One line where a program reads it; on a terminal as many as it takes."""
    if not sys.stdout.isatty():
        return name + line
    return textwrap.fill(name + line, get_terminal_size().columns, subsequent_indent=" " * 21)
