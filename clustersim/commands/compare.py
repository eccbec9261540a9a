"""`clustersim compare A B`: two runs side by side."""

from __future__ import annotations

import json

from clustersim.commands.screen import stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    folders = [text for text in arguments if not text.startswith("-")]
    if unknown := [text for text in arguments if text.startswith("-") and text != "--json"]:
        raise InputError(f"compare {unknown[0]}: there is no such flag (--json prints values for a script)")
    if len(folders) != 2:
        raise InputError(f"{' '.join(['compare', *arguments])}: takes the folders of two runs")
    from clustersim.results.comparing import compare, comparison_table

    compared = compare(*folders)
    if "--json" in arguments:
        print(json.dumps(compared.plain(), indent=2))
        return 0
    stdout_console().print(comparison_table(compared))
    return 0
