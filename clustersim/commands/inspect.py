"""`clustersim inspect PATH`: what a topology, a model, a trace or a folder of results is."""

from __future__ import annotations

import sys
from pathlib import Path

from clustersim.commands.arguments import own_folder
from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    paths, plot, check = [], False, False
    file: str | None = None
    own, given = own_folder(arguments)
    rest = iter(given)
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
            raise InputError(f"inspect {text}: there is no such flag (--plot, -o FILE, --check, --config-dir DIR)")
        else:
            paths.append(text)
    if len(paths) != 1:
        asked = " ".join(["inspect", *arguments])
        raise InputError(f"{asked}: takes one of: a trace, the folder or run_id of a run, a topology, a model")
    if own is not None:
        paths = [_of_their_own(own, paths[0])]
    from clustersim.results.store import run_folder

    paths = [str(run_folder(paths[0]))]
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


def _of_their_own(folder: Path, name: str) -> str:
    """The topology or model of a user's own folder that has this name; else the name, for a file or one of ours."""
    from clustersim.places import option_files

    found = [option_files(group, folder).get(name) for group in ("topology", "model")]
    return next((str(path) for path in found if path is not None and folder in path.parents), name)


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
