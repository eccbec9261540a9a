"""`clustersim inspect PATH`: what a topology, a model, a trace or a folder of results is."""

from __future__ import annotations

import sys

from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    paths, plot, check = [], False, False
    file: str | None = None
    rest = iter(arguments)
    for text in rest:
        if text == "--plot":
            plot = True
        elif text == "--check":
            check = True
        elif text == "-o":
            file = next(rest, None)
            if file is None:
                raise InputError("inspect -o: names no file; write -o FILE.png")
        elif text.startswith("-"):
            raise InputError(f"inspect {text}: there is no such flag (--plot draws, -o FILE says where; --check)")
        else:
            paths.append(text)
    if len(paths) != 1:
        raise InputError(f"{' '.join(['inspect', *arguments])}: takes one path: a trace, the folder of a run, or a topology")
    if file is not None and not plot:
        raise InputError(f"inspect -o {file}: says where --plot draws; add --plot")
    if check:
        return _check(paths[0])
    from clustersim.results import inspection

    picture = inspection.plot(paths[0], file) if plot else None
    with run_progress() as progress:
        page = inspection.inspect_path(paths[0], progress=progress)
    stdout_console().print(page)
    if picture is not None:
        print(f"drawn in {picture}")
    return 0


def _check(path: str) -> int:
    """Every breach of the format on stderr, exit code 2 if there is any; suspicious facts on stdout."""
    from clustersim.results.trace_report import check_page

    with run_progress() as progress:
        problems, faults = check_page(path, progress=progress)
    for problem in problems:
        print(f"clustersim: {problem}", file=sys.stderr)
    for fault in faults:
        print(f"suspicious: {fault}")
    if not problems:
        print(f"{path}: keeps the format moetrace/1")
    return 2 if problems else 0
