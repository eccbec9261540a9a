"""A table of jobs that fits the width it is given: swept keys beside what came of them. It decides how, not what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 100_000        # columns


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptTable:
    """One line per job. No name or number is broken to make it fit; what is done instead, the first that is enough:

    1. whole names of the keys;
    2. their last words, as far as they tell them apart, and a line that says what they stand for;
    3. results are left off, `spare` ones in their order, and a line says which;
    4. jobs are numbered, and listed below.
    """

    keys: tuple[str, ...]
    jobs: tuple[tuple[str, ...], ...]               # the values of the keys, by job
    results: Mapping[str, tuple[str, ...]]          # heading -> a text per job
    caption: str
    spare: tuple[str, ...] = ()
    best: tuple[bool, ...] = ()                     # jobs that are set in bold

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=_UNBOUNDED, width=_UNBOUNDED)
        forms = [(numbered, *form) for numbered in (False, True) for form in self._forms(numbered)]
        fitting = (form for form in forms if Measurement.get(console, wide, form[1]).maximum <= options.max_width)
        numbered, table, more = next(fitting, forms[-1])
        yield table
        yield from (Text(text, style="dim") for text in (self.caption, more) if text)
        yield from self._listed() if numbered else ()

    def _forms(self, numbered: bool) -> Iterator[tuple[Table, str]]:
        """Tables, and what is to be said of them, from the most that is shown to the least."""
        spare = [name for name in self.spare if name in self.results]
        heads, cells, stands = [*self.keys], [*self.jobs], list[str]()
        if numbered:
            heads, cells = ["job"], [(str(i),) for i in range(1, len(self.jobs) + 1)]
        yield self._table(heads, cells, ()), ""
        if not numbered:
            heads = short_names(self.keys)
            stands = [f"{name}: {key}" for key, name in zip(self.keys, heads, strict=True) if key != name]
            yield self._table(heads, cells, ()), "; ".join(stands)
        for i in range(1, len(spare) + 1):
            left = f"no room for {', '.join(spare[:i])}: --json has all"
            yield self._table(heads, cells, spare[:i]), "; ".join([*stands, left])

    def _table(self, heads: Sequence[str], cells: Sequence[tuple[str, ...]], left_off: Sequence[str]) -> Table:
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        shown = [name for name in self.results if name not in left_off]
        for heading in (*heads, *shown):
            table.add_column(heading, justify="right", no_wrap=True)
        for i, own in enumerate(cells):
            bold = "bold" if self.best and self.best[i] else None
            table.add_row(*own, *(self.results[name][i] for name in shown), style=bold)
        return table

    def _listed(self) -> Iterator[Text]:
        for i, values in enumerate(self.jobs, start=1):
            told = " ".join(f"{key}={value}" for key, value in zip(self.keys, values, strict=True))
            yield Text(f"job {i}: {told}", style="dim")


def short_names(keys: Sequence[str]) -> list[str]:
    """The last words of dotted keys, as many as tell each from the others: `factor` of `capacity.factor`."""
    names = []
    for key in keys:
        words = key.split(".")
        for n in range(1, len(words) + 1):
            name = ".".join(words[-n:])
            if not any(other != key and f".{other}".endswith(f".{name}") for other in keys):
                break
        names.append(name)
    return names
