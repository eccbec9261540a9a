"""The commands. Each imports what it needs when it runs, so that help costs nothing; nobody else prints."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustersim.places import GROUPS, group_folder, options

if TYPE_CHECKING:
    from rich.console import Console

    from clustersim.simulation import Result
    from clustersim.sweeps.run import Standing, Swept

USAGE = """\
clustersim: a cluster that runs a mixture-of-experts model, simulated from router decisions to seconds

  clustersim [KEY=VALUE ...]        one run; a table per layer, a summary, and a folder of results
  clustersim -m KEY=A,B,C ...       a sweep: one run for every combination, compared in one table
  clustersim +experiment=NAME       a study
  clustersim --cfg [KEY=VALUE ...]  the whole config of a run, without running it
  clustersim list [GROUP]           all options, one line each
  clustersim inspect PATH           what a topology, a model, a trace or the folder of a run is
                                    (--plot draws a topology or a trace, -o FILE.png says where; --check: is the trace sound?)
  clustersim convert SRC -o DIR     a trace from what another system recorded; --from FORMAT, else it is recognised
                                    (clustersim convert alone lists the formats; KEY=VALUE: what the file does not say)
  clustersim convert CONFIG.json --from hf-config [-o MODEL.yaml]
                                    a model from a Hugging Face configuration, for model=MODEL.yaml
  clustersim compare A B [--json]   two runs (their folders) side by side: how they differ, and what came of it
  clustersim fit TRACE [-o FILE]    what the sampler has to be told to look like a trace; for trace.parameters=FILE
  clustersim fit PATH --score       how well that works, on sequences held out; PATH a trace, or a folder of them
  clustersim report [DIR]           one page with pictures of a run or a whole sweep (the newest
                                    without DIR); --svg, --pdf: every figure too; -o FILE
  clustersim capture tiny           train a small model in PyTorch and record its router
                                    (KEY=VALUE: out, device, seed, steps, scores)
  clustersim capture hf MODEL --text FILE ...
                                    record the routers of a Hugging Face model
                                    (KEY=VALUE: out, batch, length, sequences, generate, scores, device, dtype, tokenizer)
  clustersim validate [FILE]        simulated against published measurements, or against those of FILE
                                    (--rows each row, --json for scripts, --plot [-o FILE.png] a picture,
                                    --leave-out each group without the constants that its own rows set)
  clustersim calibrate LOGS... -o FILE.yaml
                                    constants of a kernel from your nccl-tests, DeepEP or nvbandwidth logs; for
                                    exchange.kernel=FILE.yaml (KEY=VALUE where a log does not say it: gpu, gpus,
                                    gpus_per_node, nic, experts)

examples
  clustersim capacity.factor=1.25 placement.replica=nearest
  clustersim -m capacity.factor=1.0,1.25,1.5,2.0
  clustersim model=deepseek_v3 topology=h800_sxm trace=sampled exchange=direct network=bound
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    gc.set_threshold(100_000, 50, 100)     # nearly all that is made here lives to the end: looking for garbage costs a tenth
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()              # a reader who has gone is noticed here, not when the interpreter ends
        return code
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:             # the reader of a pipe has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        from clustersim.types import InputError

        if not isinstance(error, InputError | OSError):
            raise
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"clustersim: {said}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        print(_help())
        return 0
    if "--version" in arguments:
        from clustersim import __version__

        print(__version__)
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "list": _list, "compare": _compare, "inspect": _inspect, "convert": _convert, "fit": _fit, "capture": _capture,
        "report": _report, "run": _run, "validate": _validate, "calibrate": _calibrate,
    }  # fmt: skip
    first = arguments[0] if arguments else ""
    if first in commands:
        return commands[first](arguments[1:])
    from clustersim.pick import did_you_mean
    from clustersim.types import InputError

    if first and "=" not in first and first[0] not in "-+~":
        near = did_you_mean(first, commands)
        raise InputError(f"{first}: there is no such command{near} (see clustersim --help)")
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    from clustersim.types import InputError

    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    if unknown := [a for a in flags if a not in ("-m", "--multirun", "--cfg")]:
        raise InputError(f"{unknown[0]}: there is no such flag (-m sweeps, --cfg shows the config, --help explains)")
    from clustersim import config

    if "--cfg" in flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(dict(config.compose([o for o in overrides if o != "job"]).config))), end="")
        return 0
    if {"-m", "--multirun"} & set(flags) or config.is_sweep(overrides):
        return _sweep(overrides)
    from rich.console import Console

    from clustersim.results import terminal

    with _progress() as progress:
        result = _simulate(overrides, progress)
        folder = result.save()
    console = Console(highlight=False)
    console.print(terminal.layer_table(result.tables["layers"]))
    console.print(terminal.summary(result.summary, result.notes))
    console.print(f"results in {folder}", soft_wrap=True)
    return 0


def _sweep(overrides: list[str]) -> int:
    """Every job of a sweep that is not there yet. One that fails is reported at the end; the others go on."""
    from clustersim.sweeps.plugins import is_hydras, run_by_hydra
    from clustersim.sweeps.run import run_sweep

    if any(is_hydras(text) for text in overrides):
        return _tell_sweep(run_by_hydra(overrides))
    with _sweep_progress() as progress:
        swept = run_sweep(overrides, progress)
    return _tell_sweep(swept)


def _tell_sweep(swept: Swept) -> int:
    """The tables of a sweep, and the jobs that failed; the exit code: 0, 1 when a job broke, 2 when one was given bad input."""
    from rich.console import Console

    from clustersim.results import terminal
    from clustersim.types import InputError

    rows, failed = swept.rows(), swept.failed()
    console = Console(highlight=False)
    if rows:
        if not console.is_terminal:
            console.width = 200         # a file or a pipe has no edge to fold at
        for table in (terminal.comparison(rows), terminal.choosing(rows), terminal.trade(rows)):
            if table is not None:
                console.print(table)
        reused = sum(outcome.state == "reused" for outcome in swept.outcomes)
        note = f" ({reused} of them were there already)" if reused else ""
        console.print(f"{len(rows)} runs in {swept.folder()}{note}", soft_wrap=True)
    if not rows and not swept.left and len({outcome.reason for _, outcome in failed}) == 1:
        raise InputError(failed[0][1].reason)           # what is wrong is in what the jobs share
    shared = set.intersection(*map(set, swept.jobs)) if len(swept.jobs) > 1 else set()
    for job, outcome in failed:
        own = " ".join(text for text in job if text not in shared)
        print(f"clustersim: failed: {own}: {outcome.reason}", file=sys.stderr)
    if swept.left:
        print(f"clustersim: stopped: {swept.left} jobs not begun; the same command goes on with them", file=sys.stderr)
    if not failed:
        return 0
    return 1 if any(outcome.fault == "crash" for _, outcome in failed) else 2


@contextmanager
def _sweep_progress() -> Iterator[Callable[[Standing, str], None]]:
    """One bar for a sweep on a terminal's stderr: jobs done and failed, and the time left. Elsewhere a line a minute."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[failures]}"), TimeRemainingColumn(),
        console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task("", total=1.0, failures="")
    told: set[str] = set()
    last = began = time.monotonic()

    def tell(standing: Standing, what: str) -> None:
        nonlocal last
        count = f"{standing.done + standing.failed} of {standing.jobs} jobs"
        failures = f"[red]{standing.failed} failed[/red]" if standing.failed else ""
        bar.update(task, completed=standing.fraction, description=count, failures=failures)
        _tell_compiling(console, told, what)
        now = time.monotonic()
        if console.is_terminal:
            if not bar.live.is_started and now - began > 2:
                bar.start()
        elif now - last > 60:
            last = now
            left = (now - began) * (1 / standing.fraction - 1) if standing.fraction else 0.0
            console.print(f"{count}, {standing.failed} failed, about {left / 60:.0f} min left", soft_wrap=True)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()


def _tell_compiling(console: Console, told: set[str], what: str) -> None:
    """Say once that it compiles, to any stderr."""
    if "compiling" in what and what not in told:
        told.add(what)
        console.print(f"{what.partition(': ')[2] or what} (about 15 s) ...", soft_wrap=True)


def _simulate(overrides: list[str], progress: Callable[[float, str], None]) -> Result:
    from clustersim.simulation import simulate

    return simulate(overrides, progress=progress)


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """What to tell of progress: one bar on a terminal's stderr, after two seconds; that it compiles, to any stderr."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console, transient=True)
    task = bar.add_task("", total=1.0)
    began = time.monotonic()
    told: set[str] = set()

    def tell(fraction: float, what: str) -> None:
        bar.update(task, completed=fraction, description=what)
        _tell_compiling(console, told, what)
        if console.is_terminal and not bar.live.is_started and time.monotonic() - began > 2:
            bar.start()

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()


def _list(arguments: list[str]) -> int:
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


def _compare(arguments: list[str]) -> int:
    from clustersim.types import InputError

    folders = [text for text in arguments if not text.startswith("-")]
    if unknown := [text for text in arguments if text.startswith("-") and text != "--json"]:
        raise InputError(f"compare {unknown[0]}: there is no such flag (--json prints values for a script)")
    if len(folders) != 2:
        raise InputError(f"{' '.join(['compare', *arguments])}: takes the folders of two runs")
    from clustersim.results.comparing import compare, comparison_table

    compared = compare(*folders)
    if "--json" in arguments:
        import json

        print(json.dumps(compared.plain(), indent=2))
        return 0
    from rich.console import Console

    Console(highlight=False).print(comparison_table(compared))
    return 0


def _inspect(arguments: list[str]) -> int:
    from clustersim.types import InputError

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
    from rich.console import Console

    from clustersim.results import inspection

    picture = inspection.plot(paths[0], file) if plot else None
    with _progress() as progress:
        page = inspection.inspect_path(paths[0], progress=progress)
    Console(highlight=False).print(page)
    if picture is not None:
        print(f"drawn in {picture}")
    return 0


def _check(path: str) -> int:
    """Every breach of the format on stderr, exit code 2 if there is any; suspicious facts on stdout."""
    from clustersim.results.trace_report import check_page

    with _progress() as progress:
        problems, faults = check_page(path, progress=progress)
    for problem in problems:
        print(f"clustersim: {problem}", file=sys.stderr)
    for fault in faults:
        print(f"suspicious: {fault}")
    if not problems:
        print(f"{path}: keeps the format moetrace/1")
    return 2 if problems else 0


def _convert(arguments: list[str]) -> int:
    """A trace from another system's files."""
    from clustersim import importers
    from clustersim.pick import bind, find
    from clustersim.types import InputError

    if "hf-config" in arguments:
        return _convert_model(arguments)
    if not arguments:
        print("  hf-config              A model, for model=FILE, from the configuration of a Hugging Face checkpoint.")
        for name in sorted(importers.__all__):
            print(f"  {name:<22} {(getattr(importers, name).__doc__ or '').strip().splitlines()[0]}")
        return 0
    paths: list[Path] = []
    given: dict[str, Any] = {}
    named = {"--from": "", "-o": ""}
    rest = iter(arguments)
    for text in rest:
        if text in named:
            named[text] = next(rest, "") or ""
            if not named[text]:
                raise InputError(f"convert {text}: needs a {'format' if text == '--from' else 'folder'}")
        elif text.startswith("-"):
            raise InputError(f"convert {text}: there is no such flag (--from FORMAT, -o DIR, KEY=VALUE)")
        elif "=" in text and not Path(text).exists():
            key, _, value = text.partition("=")
            given[key] = _value(value)
        else:
            paths.append(Path(text))
    if len(paths) != 1 or not named["-o"]:
        raise InputError(f"{' '.join(['convert', *arguments])}: takes one file or folder, and -o DIR")
    if not paths[0].exists():
        raise InputError(f"{paths[0]}: no such file or folder")
    from clustersim.importers.recognition import detect
    from clustersim.importers.storing import store

    form = named["--from"] or detect(paths[0])
    if form is None:
        raise InputError(f"{paths[0]}: no format is recognised; say --from FORMAT (clustersim convert lists them)")
    made = bind("convert", form, find(importers, form, "--from"), given)(paths[0])
    facts, notes, faults = store(made, Path(named["-o"]), f"{form} {paths[0].name}")
    print(f"{facts} from {form} in {named['-o']}")
    for note in notes:
        print(f"note: {note}")
    for fault in faults:
        print(f"suspicious: {fault}")
    return 0


def _value(text: str) -> Any:
    """A value of an option as it is meant: whole number, true, false, or text."""
    if text.removeprefix("-").isdecimal():
        return int(text)
    return {"true": True, "false": False}.get(text, text)


def _convert_model(arguments: list[str]) -> int:
    """A model for `model=FILE` from the configuration of a Hugging Face checkpoint; without -o it is printed."""
    from clustersim.hf_config import converted
    from clustersim.types import InputError

    rest = [a for a in arguments if a not in ("--from", "hf-config")]
    out = rest.pop(rest.index("-o") + 1) if "-o" in rest[:-1] else None
    rest = [a for a in rest if a != "-o"]
    if len(rest) != 1:
        raise InputError(f"{' '.join(['convert', *arguments])}: takes one CONFIG.json, and -o MODEL.yaml")
    told, text = converted(Path(rest[0]))
    if out is None:
        print(text, end="")
    else:
        Path(out).write_text(text, encoding="utf-8")
        print(f"{told}, in {out}")
    return 0


def _fit(arguments: list[str]) -> int:
    from clustersim.types import InputError

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

    path = Path(given[0])
    if (path / "counts.parquet").is_file() and not (path / "tokens.parquet").is_file():
        counts = read_counts(path)
        (parameters, notes), model = fit_counts(counts), counts.model
    else:
        trace = read_trace(path)
        with _progress() as progress:
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


def _report(arguments: list[str]) -> int:
    from clustersim.report.make import newest_results, write_report
    from clustersim.types import InputError

    folders: list[str] = []
    formats: list[str] = []
    file: str | None = None
    rest = iter(arguments)
    for text in rest:
        if text in ("--svg", "--pdf"):
            formats.append(text.removeprefix("--"))
        elif text == "-o":
            file = next(rest, None)
            if file is None:
                raise InputError("report -o: names no file; write -o FILE.html")
        elif text.startswith("-"):
            raise InputError(f"report {text}: there is no such flag (--svg and --pdf write every figure, -o FILE says where)")
        else:
            folders.append(text)
    if len(folders) > 1:
        raise InputError(f"report {' '.join(folders)}: takes one folder, of a run or of many")
    folder = Path(folders[0]) if folders else newest_results(Path("results"))
    headline, (page, *others) = write_report(folder, None if file is None else Path(file), formats)
    print(headline)
    print(f"report of {folder} in {page}" + (f", {len(others)} figures in {others[0].parent}" if others else ""))
    return 0


def _score(path: Path) -> int:
    """The table of how good fits are, of one trace or of every trace in a folder."""
    from rich.console import Console

    from clustersim.results.fits import score_table
    from clustersim.types import InputError
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
        with _progress() as progress:
            scores[folder.name] = score_fit(read_trace(folder), progress=progress)
    if not scores:
        raise InputError(f"fit --score: {path}: no trace with tokens")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200             # a file or a pipe has no edge to fold at
    console.print(score_table(scores, SEEDS))
    return 0


def _capture(arguments: list[str]) -> int:
    from clustersim.types import InputError

    if arguments and arguments[0] == "hf":
        return _capture_hf(arguments[1:])
    if not arguments or arguments[0] != "tiny":
        raise InputError(f"{' '.join(['capture', *arguments[:1]])}: takes tiny, or hf MODEL --text FILE")
    given: dict[str, Any] = {"out": "tiny_trace"}
    kinds: dict[str, Callable[[str, str], Any]] = {
        "out": lambda key, text: text, "device": lambda key, text: text, "seed": _whole, "steps": _whole, "scores": _flag,
    }  # fmt: skip
    for text in arguments[1:]:
        key, equals, value = text.partition("=")
        if not equals or key not in kinds:
            raise InputError(f"{text}: capture tiny takes {', '.join(f'{k}=...' for k in kinds)}")
        given[key] = kinds[key](key, value)
    from clustersim.capture.tiny import capture_tiny

    with _progress() as progress:
        facts = capture_tiny(Path(given.pop("out")), progress=progress, **given)
    print(f"{facts['tokens']:,} tokens in {facts['path']}, made in {facts['seconds']:.0f} s")
    print(f"replay it: clustersim trace=file trace.path={facts['path']}")
    return 0


def _capture_hf(arguments: list[str]) -> int:
    """A trace from a Hugging Face model: MODEL --text FILE ... [KEY=VALUE]."""
    from clustersim.types import InputError

    kinds: dict[str, Callable[[str, str], Any]] = {
        "out": lambda key, text: text, "device": lambda key, text: text, "dtype": lambda key, text: text,
        "tokenizer": lambda key, text: text, "batch": _whole, "length": _whole, "sequences": _whole, "generate": _whole,
        "scores": _flag,
    }  # fmt: skip
    given: dict[str, Any] = {"out": "trace"}
    models, texts = [], []
    text_follows = False
    for text in arguments:
        key, equals, value = text.partition("=")
        if text == "--text":
            text_follows = True
        elif equals and key in kinds:
            given[key], text_follows = kinds[key](key, value), False
        elif text.startswith("-") or (equals and not Path(text).exists()):
            raise InputError(f"{text}: capture hf takes MODEL --text FILE ... and {', '.join(f'{k}=...' for k in kinds)}")
        elif text_follows:
            texts.append(text)
        else:
            models.append(text)
    if len(models) != 1 or not texts:
        raise InputError(f"{' '.join(['capture hf', *arguments])}: takes one MODEL, and --text FILE ...")
    from clustersim.capture.huggingface import capture_hf

    with _progress() as progress:
        facts = capture_hf(models[0], texts, given.pop("out"), progress=progress, **given)
    again = f", {facts['resumed']} batches from before" if facts["resumed"] else ""
    print(f"{facts['tokens']:,} tokens of {facts['sequences']:,} sequences in {facts['path']}, {facts['seconds']:.0f} s{again}")
    print(f"look at it: clustersim inspect {facts['path']}")
    return 0


def _validate(arguments: list[str]) -> int:
    from clustersim.types import InputError

    flags, paths, rest, picture = set(), [], iter(arguments), None
    for text in rest:
        if text == "-o":
            picture = next(rest, None)
            if picture is None:
                raise InputError("validate -o: names no file; write -o FILE.png")
        elif text in ("--rows", "--json", "--plot", "--leave-out"):
            flags.add(text)
        elif text.startswith("-"):
            raise InputError(f"validate {text}: there is no such flag (--rows, --json, --plot, --leave-out, -o FILE.png)")
        else:
            paths.append(text)
    if len(paths) > 1:
        raise InputError(f"validate {paths[1]}: takes one file of measurements")
    if picture is not None and "--plot" not in flags:
        raise InputError(f"validate -o {picture}: says where --plot draws; add --plot")
    from clustersim.validation import scoring, shown
    from clustersim.validation.rows import published, read_rows

    rows = read_rows(Path(paths[0])) if paths else published()
    if "--leave-out" in flags:
        if paths or len(flags) > 1:
            raise InputError("validate --leave-out: is about the published rows and goes with nothing else")
        from rich.console import Console

        from clustersim.validation.leaving import leave_one_out

        with _progress() as progress:
            left = leave_one_out(rows, progress)
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = 200
        console.print(shown.left_table(left))
        return 0
    with _progress() as progress:
        scored = scoring.score(rows, progress=progress)
    groups = scoring.verdicts(scored)
    if "--json" in flags:
        import json

        print(json.dumps(scoring.as_json(scored, groups)))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200             # a file or a pipe has no edge to fold at
    if "--rows" in flags:
        console.print(shown.rows_table(scored))
        console.print()
    for identities in (False, True):
        if any(v.identity == identities for v in groups):
            console.print(shown.groups_table(groups, identities=identities))
    if "--plot" in flags:
        print(f"drawn in {shown.plot(scored, Path(picture or 'validate.png'))}")
    return 0


def _calibrate(arguments: list[str]) -> int:
    from clustersim.types import InputError

    given: dict[str, Any] = {}
    kinds: dict[str, Callable[[str, str], Any]] = {
        "gpu": lambda key, text: text, "nic": lambda key, text: text,
        **dict.fromkeys(("gpus", "gpus_per_node", "experts", "hidden", "top_k", "tokens_per_gpu"), _whole),
    }  # fmt: skip
    logs, out, rest = [], None, iter(arguments)
    for text in rest:
        key, equals, value = text.partition("=")
        if text == "-o":
            out = next(rest, None)
        elif text.startswith("-"):
            raise InputError(f"calibrate {text}: there is no such flag (-o FILE.yaml)")
        elif equals and key in kinds:
            given[key] = kinds[key](key, value)
        elif equals and not Path(text).is_file():
            raise InputError(f"{text}: calibrate takes {', '.join(f'{k}=...' for k in kinds)}")
        else:
            logs.append(Path(text))
    if not logs or out is None or not out.endswith((".yaml", ".yml")):
        raise InputError("calibrate: takes logs and the file to write: clustersim calibrate LOGS... -o FILE.yaml")
    from rich.console import Console

    from clustersim.validation.calibration import calibrate, write_kernel
    from clustersim.validation.logs import read_log
    from clustersim.validation.shown import calibrated_tables

    found = calibrate([row for log in logs for row in read_log(log, given)])
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200             # a file or a pipe has no edge to fold at
    for table in calibrated_tables(found):
        console.print(table)
    files = write_kernel(found, Path(out))
    console.print(f"constants in {files[0]}; use them: clustersim exchange={found.exchange} exchange.kernel={files[0]}")
    for file in files[1:]:
        console.print(f"machine in {file}; use it: clustersim topology={file}")
    return 0


def _whole(key: str, text: str) -> int:
    from clustersim.types import InputError

    if not text.isdecimal():
        raise InputError(f"{key}={text}: must be a whole number")
    return int(text)


def _flag(key: str, text: str) -> bool:
    from clustersim.types import InputError

    if text not in ("true", "false"):
        raise InputError(f"{key}={text}: must be true or false")
    return text == "true"


def _help() -> str:
    import textwrap

    width = max(len(group) for group in GROUPS)
    lines = [
        textwrap.fill(f"  {group:<{width}}  {', '.join(options(group_folder(group)))}", 130, subsequent_indent=" " * (width + 4))
        for group in GROUPS
    ]
    keys = "any key of the config can be set: workload.tokens_per_gpu=1024 topology.nodes=16 seed=1 (clustersim --cfg lists them)"
    return "\n".join([USAGE, "groups and their options (the defaults: clustersim --cfg)", *lines, "", keys])


if __name__ == "__main__":
    sys.exit(main())
