"""`clustersim list`: the options of the config groups."""

from __future__ import annotations

import json

from clustersim.places import GROUPS, group_folder, options


def command(arguments: list[str]) -> int:
    groups = [text for text in arguments if text != "--json"]
    for group in groups:
        if group not in GROUPS:
            from clustersim.pick import did_you_mean
            from clustersim.types import InputError

            raise InputError(f"list {group}: there is no such group{did_you_mean(group, GROUPS)} (known: {', '.join(GROUPS)})")
    found = {group: options(group_folder(group)) for group in groups or GROUPS}
    if "--json" in arguments:
        print(json.dumps(found, indent=2))
        return 0
    for group in found:
        print(f"{group}: {GROUPS[group]}")
        for name, line in found[group].items():
            print(f"  {name:<18} {line}")
    return 0
