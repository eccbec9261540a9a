"""`clustersim list`: the options of the config groups, and the keys of one."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from clustersim.places import groups, option_files, options_of


def command(arguments: list[str]) -> int:
    own, rest = None, arguments
    if any(text.startswith("--config-dir") for text in arguments):
        from clustersim.commands.arguments import own_folder

        own, rest = own_folder(arguments)
    asked = [text for text in rest if text != "--json"]
    for text in asked:
        _check(text, own)
    if "--json" in rest:
        print(json.dumps({text: _content(text, own) for text in asked or groups(own)}, indent=2))
        return 0
    for text in asked or groups(own):
        _show(text, own)
    return 0


def _check(text: str, own: Path | None) -> None:
    """`text` is a group, or GROUP=OPTION.

    Raises:
        InputError: no such group or option.
    """
    group, equals, option = text.partition("=")
    known = groups(own)
    if group in known and (not equals or option in option_files(group, own)):
        return
    from clustersim.pick import did_you_mean
    from clustersim.types import InputError

    if group.startswith("-"):
        raise InputError(f"list {group}: there is no such flag (--json, --config-dir DIR)")
    if group not in known:
        raise InputError(f"list {group}: there is no such group{did_you_mean(group, known)} (known: {', '.join(known)})")
    offered = option_files(group, own)
    raise InputError(f"list {text}: there is no such {group}{did_you_mean(option, offered)} (known: {', '.join(offered)})")


def _content(text: str, own: Path | None) -> dict[str, Any]:
    """For a program: a group's options with what each is, or an option's keys with values as written and what each means."""
    group, equals, option = text.partition("=")
    if not equals:
        return dict(options_of(group, own))
    from clustersim.descriptions import described

    return {name: {"value": key.value, "meaning": key.meaning} for name, key in described(group, option, own).items()}


def _show(text: str, own: Path | None) -> None:
    group, equals, option = text.partition("=")
    if not equals:
        print(f"{group}: {groups(own)[group]}")
        lines = options_of(group, own)
        wide = max([18, *map(len, lines)])
        for name, line in lines.items():
            print(_entry(f"  {name:<{wide}} ", line))
        return
    print(_entry(f"{text}: ", options_of(group, own)[option]))
    content = _content(text, own)
    wide = min(40, max((len(f"{name}={key['value']}") for name, key in content.items()), default=0))
    for name, key in content.items():
        print(_entry(f"  {name}{'=' if key['value'] else ''}{key['value']}".ljust(wide + 2) + "  ", key["meaning"]))


def _entry(name: str, line: str) -> str:
    """One line where a program reads it; on a terminal as many as it takes."""
    if not sys.stdout.isatty():
        return (name + line).rstrip()
    return textwrap.fill(name + line, get_terminal_size().columns, subsequent_indent=" " * min(len(name), 43))
