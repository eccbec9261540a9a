"""`clustersim validate`: simulated against measured."""

from __future__ import annotations

import json
from pathlib import Path

from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    flags, paths, rest, picture = set(), [], iter(arguments), None
    for text in rest:
        if text == "-o":
            picture = next(rest, None)
            if picture is None:
                raise InputError("validate -o: names no file; write -o FILE.png")
        elif text in ("--rows", "--json", "--plot", "--leave-out", "--refit"):
            flags.add(text)
        elif text.startswith("-"):
            known = "--rows, --json, --plot, --leave-out, --refit, -o FILE.png"
            raise InputError(f"validate {text}: there is no such flag ({known})")
        else:
            paths.append(text)
    if len(paths) > 1:
        raise InputError(f"validate {paths[1]}: takes one file of measurements")
    if picture is not None and "--plot" not in flags:
        raise InputError(f"validate -o {picture}: says where --plot draws; add --plot")
    from clustersim.validation import scoring, shown
    from clustersim.validation.rows import published, read_rows

    rows = read_rows(Path(paths[0])) if paths else published()
    if again := flags & {"--leave-out", "--refit"}:
        if paths or len(flags) > 1:
            raise InputError(f"validate {min(again)}: is about the published rows and goes with nothing else")
        from clustersim.validation import leaving

        with run_progress() as progress:
            if "--refit" in flags:
                table = shown.refit_table(leaving.refit(rows, progress))
            else:
                table = shown.left_table(leaving.leave_one_out(rows, progress))
        stdout_console(edge=False).print(table)
        return 0
    with run_progress() as progress:
        scored = scoring.score(rows, progress=progress)
    groups = scoring.verdicts(scored)
    if "--json" in flags:
        print(json.dumps(scoring.as_json(scored, groups)))
        return 0
    console = stdout_console(edge=False)
    if "--rows" in flags:
        console.print(shown.rows_table(scored))
        console.print()
    for identities in (False, True):
        if any(v.identity == identities for v in groups):
            console.print(shown.groups_table(groups, identities=identities))
    if "--plot" in flags:
        print(f"drawn in {shown.plot(scored, Path(picture or 'validate.png'))}")
    return 0
