"""`clustersim fit`: parameters of the sampler from a trace, and how good they are."""

from __future__ import annotations

import sys
from pathlib import Path

from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    given = [a for a in arguments if a != "--score"]
    out = None
    if "-o" in given:
        at = given.index("-o")
        if at + 1 == len(given):
            raise InputError("fit -o: needs the name of a file")
        out = Path(given[at + 1])
        del given[at : at + 2]
    if len(given) != 1 or given[0].startswith("-"):
        raise InputError(f"{' '.join(['fit', *arguments])}: takes one trace, and -o FILE or --score")
    if "--score" in arguments:
        if out is not None:
            raise InputError("fit --score: prints a table; leave -o out")
        return _score(Path(given[0]))
    from clustersim.workload.fit import fit_counts, fit_tokens
    from clustersim.workload.sampler_parameters import as_text, write_parameters
    from clustersim.workload.trace import read_trace
    from clustersim.workload.trace_counts import read_counts
    from clustersim.writing import check_writable

    path = Path(given[0])
    if out is not None:
        check_writable(out, f"fit -o {out}")
    if (path / "counts.parquet").is_file() and not (path / "tokens.parquet").is_file():
        counts = read_counts(path)
        (parameters, notes), model = fit_counts(counts), counts.model
    else:
        trace = read_trace(path)
        with run_progress() as progress:
            parameters, notes = fit_tokens(trace, progress=progress)
        model = str(trace.meta.get("model", path.name))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if out is None:
        print(as_text(parameters, model), end="")
        return 0
    write_parameters(parameters, out, model)
    print(f"parameters in {out}; sample from them: clustersim trace=sampled trace.parameters={out}")
    return 0


def _score(path: Path) -> int:
    """The table of how good fits are, of one trace or of every trace in a folder."""
    from clustersim.results.fits import score_table
    from clustersim.workload.fit_score import SEEDS, score_fit
    from clustersim.workload.trace import read_trace

    alone = path.is_file() or (path / "tokens.parquet").is_file()
    folders = [path] if alone else sorted({file.parent for file in path.glob("*/*.parquet")})
    if not folders:
        raise InputError(f"fit --score: {path}: there is no trace, nor a folder of traces")
    scores = {}
    for folder in folders:
        if folder.is_dir() and not (folder / "tokens.parquet").is_file():
            print(f"note: {folder.name}: counts only; nothing to score, as its loads are copied", file=sys.stderr)
            continue
        with run_progress() as progress:
            scores[folder.name] = score_fit(read_trace(folder), progress=progress)
    if not scores:
        raise InputError(f"fit --score: {path}: no trace with tokens")
    stdout_console(edge=False).print(score_table(scores, SEEDS))
    return 0
