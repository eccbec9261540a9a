"""`clustersim list`: the options of the config groups."""

from __future__ import annotations

import json
import sys
import textwrap
from shutil import get_terminal_size

from clustersim.places import groups, options_of


def command(arguments: list[str]) -> int:
    own, rest = None, arguments
    if any(text.startswith("--config-dir") for text in arguments):
        from clustersim.commands.arguments import own_folder

        own, rest = own_folder(arguments)
    asked = [text for text in rest if text != "--json"]
    known = groups(own)
    for group in asked:
        if group not in known:
            from clustersim.pick import did_you_mean
            from clustersim.types import InputError

            if group.startswith("-"):
                raise InputError(f"list {group}: there is no such flag (--json, --config-dir DIR)")
            raise InputError(f"list {group}: there is no such group{did_you_mean(group, known)} (known: {', '.join(known)})")
    found = {group: options_of(group, own) for group in asked or known}
    if "--json" in rest:
        print(json.dumps(found, indent=2))
        return 0
    for group in found:
        print(f"{group}: {known[group]}")
        wide = max([18, *map(len, found[group])])
        for name, line in found[group].items():
            print(_entry(f"  {name:<{wide}} ", line))
    return 0


def _entry(name: str, line: str) -> str:
    """One line where a program reads it; on a terminal as many as it takes."""
    if not sys.stdout.isatty():
        return name + line
    return textwrap.fill(name + line, get_terminal_size().columns, subsequent_indent=" " * len(name))
