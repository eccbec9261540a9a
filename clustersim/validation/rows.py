"""Measurements as rows: our own table, and a user's file. Reads and checks; simulates nothing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.places import PACKAGE
from clustersim.types import InputError

FOLDER = PACKAGE / "validation"
_TIMES = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "ms/layer": 1e-3, "s/token": 1.0,
    "ms/token": 1e-3,
}  # fmt: skip
_BYTES = {"B/s": 1.0, "MB/s": 1e6, "GB/s": 1e9, "TB/s": 1e12, "Gb/s": 1e9 / 8}
_FLOPS = {"FLOP/s": 1.0, "GFLOP/s": 1e9, "TFLOP/s": 1e12, "PFLOP/s": 1e15, "GFLOPS": 1e9, "TFLOPS": 1e12, "PFLOPS": 1e15}
_TOKENS = {"tok/s": 1.0, "tokens/s": 1.0}
_HOURS = {"H800 h": 1.0, "GPU h": 1.0, "GPU-hours": 1.0}


def _each(rates: Mapping[str, float], *shares: str) -> dict[str, float]:
    """Rates, and rates of one GPU or another share."""
    return {f"{name}{share}": scale for share in ("", *shares) for name, scale in rates.items()}


OF_METRIC = {                   # how a metric begins -> its units, and what a row's value is multiplied by: SI
    "seconds": _TIMES, "bytes/s": _each(_BYTES, "/GPU"), "FLOP/s": _each(_FLOPS, "/GPU"), "model FLOP/s": _each(_FLOPS, "/GPU"),
    "tokens/s": _each(_TOKENS, "/GPU", "/node", "/user"), "GPU-hours": _HOURS,
}  # fmt: skip
UNITS = {
    **{unit: scale for units in OF_METRIC.values() for unit, scale in units.items()},
    "ratio": 1.0, "x": 1.0, "%": 0.01, "nodes": 1.0, "ranks": 1.0, "experts": 1.0, "tokens": 1.0, "exact": 1.0,
}  # fmt: skip
NEEDED = ("id", "value", "unit", "case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    id: str
    group: str                  # of `cases.yaml`; "yours" in a user's file that names none
    system: str                 # hardware and software together, for leaving one out
    value: Any                  # in SI; a number, or for some identities a list
    scale: float                # SI value of one `unit`
    unit: str
    case: Mapping[str, Any]     # what was measured: `what` names the kind, the rest is its configuration
    source: str


def published() -> list[Row]:
    """The measurements that ship with the package."""
    text = (FOLDER / "data" / "published.jsonl").read_text(encoding="utf-8")
    return [row_from(json.loads(line), f"published row {i + 1}") for i, line in enumerate(text.splitlines())]


def read_rows(path: Path) -> list[Row]:
    """A user's measurements: rows of `id, value, unit, case`; `group`, `system` and `source` are kept where given.

    A JSON list, JSON lines, a YAML list, or CSV, where `case` is one column of JSON or columns `case.KEY`.

    Raises:
        InputError: no such file, not readable, a row without one of the four, an unknown unit, a value that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"validate {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"validate {path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from error
    given = _parsed(path, text)
    if not given:
        raise InputError(f"validate {path}: has no rows")
    rows = [row_from(row, f"{path} row {i + 1}") for i, row in enumerate(given)]
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(f"validate {path}: two rows have the id {row.id!r}")
        seen.add(row.id)
    return rows


def unit_of_metric(row: Row) -> None:
    """Check that the unit is one of the metric, and of the same share of the cluster where both name one.

    Raises:
        InputError: it is not.
    """
    metric, unit = str(row.case.get("metric")), row.unit
    units = next((units for start, units in OF_METRIC.items() if metric.startswith(start)), None)
    if units is not None and unit not in units:
        raise InputError(f"unit {unit}: is none of the metric {metric!r} (known: {', '.join(units)})")
    shares = [next((share for share in ("/GPU", "/node", "/user") if text.endswith(share)), "") for text in (metric, unit)]
    if shares[1] and shares[0] != shares[1]:
        raise InputError(f"unit {unit}: is of another share than the metric {metric!r}")


def _parsed(path: Path, text: str) -> list[Any]:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return [_unflattened(row) for row in csv.DictReader(text.splitlines())]
        if kind in (".yaml", ".yml"):
            import yaml

            return _listed(path, yaml.safe_load(text))
        if kind == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return _listed(path, json.loads(text))
    except ValueError as error:
        if kind == ".json" and "\n" in text.strip():     # lines of JSON under the other name
            try:
                return [json.loads(line) for line in text.splitlines() if line.strip()]
            except ValueError:
                pass
        raise InputError(f"validate {path}: cannot be read: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise InputError(f"validate {path}: not a YAML file: {str(error).splitlines()[0]}") from error
        raise


def _listed(path: Path, given: Any) -> list[Any]:
    given = given.get("rows") if isinstance(given, Mapping) and "rows" in given else given
    if not isinstance(given, list):
        raise InputError(f"validate {path}: must be a list of rows with {', '.join(NEEDED)}")
    return given


def _unflattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """A CSV row with its case as one mapping, and numbers as numbers."""
    case: Any = json.loads(row["case"]) if row.get("case") else {}
    for key, text in row.items():
        if key and key.startswith("case.") and text not in (None, ""):
            case[key.removeprefix("case.")] = _plain(text)
    rest = {key: text for key, text in row.items() if key and not key.startswith("case.") and key != "case" and text}
    return {**rest, "value": _plain(row.get("value") or ""), "case": case}


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def row_from(given: Any, where: str) -> Row:
    """One row, checked.

    Raises:
        InputError: names `where`.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must have {', '.join(NEEDED)}")
    if missing := [key for key in NEEDED if given.get(key) is None]:
        raise InputError(f"{where}: has no {missing[0]}")
    where = f"{where} ({given['id']})"
    unit, value, case = given["unit"], given["value"], given["case"]
    if unit not in UNITS:
        raise InputError(f"{where}: unit {unit!r} is unknown{did_you_mean(str(unit), UNITS)} (known: {', '.join(UNITS)})")
    if not isinstance(case, Mapping) or not isinstance(case.get("what"), str):
        raise InputError(f"{where}: case must be a mapping whose `what` says what was measured")
    if not _is_numbers(value):
        raise InputError(f"{where}: value {value!r} is no finite number above 0")
    scale = UNITS[unit]
    return Row(
        id=str(given["id"]), group=str(given.get("group") or "yours"), system=str(given.get("system") or ""),
        value=value if isinstance(value, list) else value * scale, scale=scale, unit=str(unit), case=case,
        source=str(given.get("source") or ""),
    )  # fmt: skip


def _is_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(part, list) or _is_numbers(part) for part in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
