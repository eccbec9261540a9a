"""What is told while something runs: one bar on a terminal's stderr, else a line now and then. Results are printed elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from clustersim.sweeps.run import Standing


@contextmanager
def run_progress() -> Iterator[Callable[[float, str], None]]:
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


@contextmanager
def sweep_progress() -> Iterator[Callable[[Standing, str], None]]:
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
            guess = ""
            if standing.done + standing.failed:         # the first job compiles, and says nothing about the others
                guess = f", about {(now - began) * (1 / standing.fraction - 1) / 60:.0f} min left"
            console.print(f"{count}, {standing.failed} failed{guess}", soft_wrap=True)

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


def stdout_console(*, edge: bool = True) -> Console:
    """Where results are printed; `edge=False`: a file or a pipe has none to fold at."""
    from rich.console import Console

    console = Console(highlight=False)
    if not edge and not console.is_terminal:
        console.width = 200
    return console
