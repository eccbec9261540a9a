"""`clustersim report`: a page of a run or a sweep."""

from __future__ import annotations

from pathlib import Path

from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    from clustersim.report.make import newest_results, write_report
    from clustersim.results.store import run_folder

    folders: list[str] = []
    formats: list[str] = []
    file: str | None = None
    everything = False
    rest = iter(arguments)
    for text in rest:
        if text in ("--svg", "--pdf"):
            formats.append(text.removeprefix("--"))
        elif text == "--all":
            everything = True
        elif text == "-o":
            file = next(rest, None)
            if file is None:
                raise InputError("report -o: names no file; write -o FILE.html")
        elif text.startswith("-"):
            raise InputError(f"report {text}: there is no such flag (--svg, --pdf: every figure; --all: of all runs; -o FILE)")
        else:
            folders.append(text)
    if len(folders) > 1:
        raise InputError(f"report {' '.join(folders)}: takes one folder, of a run or of many")
    folder = run_folder(folders[0]) if folders else newest_results(Path("results"))
    headline, (page, *others) = write_report(folder, None if file is None else Path(file), formats, everything=everything)
    print(headline)
    print(f"report of {folder} in {page}" + (f", {len(others)} figures in {others[0].parent}" if others else ""))
    return 0
