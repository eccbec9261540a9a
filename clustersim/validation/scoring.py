"""Simulated against measured: the error of every row and the verdict on every group. Knows no physics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clustersim.pick import find
from clustersim.types import InputError
from clustersim.validation import kinds
from clustersim.validation.notes import noting, typed
from clustersim.validation.rows import FOLDER, Row, unit_of_metric

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A row and what the simulator makes of it."""

    row: Row
    simulated: Any              # in SI, like row.value; None where it is not modelled
    error: float | None         # (simulated - measured) / measured; None where it is not modelled
    bar: float | None           # the largest |error| that the row may have
    reason: str                 # why it is not modelled; "" where it is
    notes: tuple[str, ...] = ()     # constants used beyond the range they were found in

    @property
    def modelled(self) -> bool:
        return self.error is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A group in one line. Errors are absolute; None where no row is modelled or the group has no bar."""

    group: str
    title: str
    identity: bool              # arithmetic, not a measurement
    rows: int
    modelled: int
    median: float | None
    worst: float | None
    bar_median: float | None
    bar_worst: float | None     # that of the worst row, where rows have bars of their own
    ok: bool | None             # None where there is no bar


def conventions() -> dict[str, dict[str, Any]]:
    """How each group is compared: `cases.yaml`."""
    import yaml

    given: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "cases.yaml").read_text(encoding="utf-8"))
    return given


def score(rows: Iterable[Row], progress: Progress = lambda fraction, what: None) -> list[Scored]:
    """Simulate every row. One that cannot be is kept, with the reason."""
    groups, rows = conventions(), list(rows)
    kinds.forget()
    scored = []
    for i, row in enumerate(rows):
        progress(i / len(rows), row.id)
        group = groups.get(row.group, {})
        case = {**row.case, "statistic": row.case.get("statistic", group.get("statistic", "mean"))}
        case.pop("aside", None)
        scored.append(_scored(row, case, _bar(group, row.case)))
    return scored


def _scored(row: Row, case: Mapping[str, Any], bar: float | None) -> Scored:
    unable = Scored(row=row, simulated=None, error=None, bar=bar, reason="")
    try:
        what = str(case["what"])
        if what in kinds.NOT_YET:
            return replace(unable, reason=kinds.NOT_YET[what])
        typed(case)
        unit_of_metric(row)
        with noting() as notes:
            simulated = find(kinds, what, "case.what")(case)
    except InputError as refusal:
        return replace(unable, reason=str(refusal))
    own = kinds.ERRORS.get(what)
    error = own(simulated, row.value, case) if own else simulated / row.value - 1
    if not math.isfinite(error):
        return replace(unable, reason=f"the simulator gives {simulated}")
    if isinstance(simulated, tuple):                # a sampled mean and its standard error
        simulated = simulated[0]
    return replace(unable, simulated=simulated, error=float(error), notes=tuple(notes))


def _bar(group: Mapping[str, Any], case: Mapping[str, Any]) -> float | None:
    if "bar" not in group:
        return None
    for other in group["bar"].get("looser", ()):
        value = case.get(other["key"])
        if value is not None and (value == other["is"] if "is" in other else value < other["below"]):
            return float(other["worst"])
    return float(group["bar"]["worst"])


def verdicts(scored: Iterable[Scored]) -> list[Verdict]:
    """One for every group, in the order of `cases.yaml`; a user's own groups after those."""
    groups, by_group = conventions(), dict[str, list[Scored]]()
    for one in scored:
        by_group.setdefault(one.row.group, []).append(one)
    order = [name for name in groups if name in by_group] + [name for name in by_group if name not in groups]
    return [_verdict(name, by_group[name], groups.get(name, {})) for name in order]


def _verdict(name: str, members: list[Scored], group: Mapping[str, Any]) -> Verdict:
    members = [one for one in members if "aside" not in one.row.case]       # calibration rows are shown, not counted
    errors = [(abs(one.error), one.bar) for one in members if one.error is not None]
    median = statistics.median(size for size, _ in errors) if errors else None
    worst, its_bar = max(errors, key=lambda e: e[0]) if errors else (None, None)
    bar_median = group["bar"]["median"] if "bar" in group else None
    ok = None
    if bar_median is not None:
        ok = len(errors) == len(members) and median is not None and median <= bar_median
        ok = ok and all(bar is None or size <= bar for size, bar in errors)
    return Verdict(
        group=name, title=group.get("title", "your own measurements"), identity=bool(group.get("identity")), rows=len(members),
        modelled=len(errors), median=median, worst=worst, bar_median=bar_median,
        bar_worst=its_bar if its_bar is not None else group["bar"]["worst"] if "bar" in group else None, ok=ok,
    )  # fmt: skip


def as_json(scored: Iterable[Scored], groups: Iterable[Verdict]) -> dict[str, Any]:
    """For `--json`: errors of rows are relative and signed; measured and simulated are in the row's own unit."""
    return {
        "groups": [
            {
                "group": v.group, "rows": v.rows, "median": v.median, "worst": v.worst, "bar_median": v.bar_median,
                "bar_worst": v.bar_worst, "ok": v.ok,
            }
            for v in groups
        ],
        "rows": [
            {
                "id": s.row.id, "group": s.row.group, "measured": in_unit(s.row.value, s.row),
                "simulated": in_unit(s.simulated, s.row), "error": s.error, "modelled": s.modelled, "reason": s.reason,
            }
            for s in scored
        ],
    }  # fmt: skip


def in_unit(value: Any, row: Row) -> Any:
    """An SI value in the unit of its row."""
    return value / row.scale if isinstance(value, int | float) else value
