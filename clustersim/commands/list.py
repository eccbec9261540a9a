"""`clustersim list`: the options of the config groups."""

from __future__ import annotations

from clustersim.places import GROUPS, group_folder, options


def command(arguments: list[str]) -> int:
    for group in arguments:
        if group not in GROUPS:
            from clustersim.pick import did_you_mean
            from clustersim.types import InputError

            raise InputError(f"list {group}: there is no such group{did_you_mean(group, GROUPS)} (known: {', '.join(GROUPS)})")
    for group in arguments or GROUPS:
        print(f"{group}: {GROUPS[group]}")
        for name, line in options(group_folder(group)).items():
            print(f"  {name:<18} {line}")
    return 0
