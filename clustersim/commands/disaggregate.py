"""`clustersim disaggregate`: prefill and decoding on nodes of their own, which of them limits, and what if that changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustersim.commands.arguments import whole_number
from clustersim.commands.screen import run_progress, stdout_console
from clustersim.pick import did_you_mean
from clustersim.places import groups
from clustersim.types import InputError

if TYPE_CHECKING:
    from clustersim.results.swept import SweptTable

SIDES = ("prefill", "decode")
LENGTHS = ("prompt", "output")
Point = dict[str, str]                  # what was asked, by key: as typed before =, and what stands behind it


def command(arguments: list[str]) -> int:
    if unknown := [text for text in arguments if text.startswith("-") and text != "--json"]:
        raise InputError(f"disaggregate {unknown[0]}: there is no such flag (--json prints values for a script)")
    points = list(_points([text for text in arguments if text != "--json"]))
    for key in LENGTHS:
        if not all(key in point for point in points):
            raise InputError(f"disaggregate: needs {key}=TOKENS; for example clustersim disaggregate prompt=4096 output=1024 "
                             "model=deepseek_v3 prefill.topology.nodes=4 decode.topology.nodes=16")  # fmt: skip
    from clustersim.disaggregation import disaggregated
    from clustersim.playing import part_of

    rows, output = [], Path("results")
    with run_progress() as progress:
        for i, point in enumerate(points):
            lengths = {key: whole_number(key, point[key]) for key in LENGTHS}
            prefill, decode = (_of_side(point, side) for side in SIDES)
            found = disaggregated(prefill, decode, **lengths, progress=part_of(progress, i, len(points)))
            output = found.prefill.save().parents[1]
            found.decode.save()
            rows.append({**point, **lengths, **found.row()})
    file = _written(rows, output)
    if "--json" in arguments:
        print(json.dumps({"rows": rows, "file": str(file)}, indent=2))
        return 0
    console = stdout_console(edge=False)
    console.print(_table(rows, [key for key in points[0] if len({point[key] for point in points}) > 1]))
    console.print(f"{len(rows)} rows in {file}, runs beside it", soft_wrap=True)
    return 0


def _points(arguments: Sequence[str]) -> Iterator[Point]:
    """Every combination of the values given, the last key fastest."""
    from clustersim.composition import parse

    choices: list[list[tuple[str, str]]] = []
    for text in arguments:
        side, _, rest = text.partition(".")
        front = f"{side}." if side in SIDES and rest else ""
        if not front and rest and side not in groups() and (near := did_you_mean(side, SIDES)):
            raise InputError(f"{text}: keys are of both sides, or behind prefill. and decode. of one{near}")
        own = text.removeprefix(front)
        if own.partition("=")[0] in LENGTHS:
            key, values = own.partition("=")[0], own.partition("=")[2].split(",")
        else:
            (override,) = parse([own])
            key = f"{front}{override.get_key_element()}"
            several = override.is_sweep_override()
            values = list(override.sweep_string_iterator()) if several else [own.partition("=")[2]]
        choices.append([(key, value) for value in values])
    yield from (dict(point) for point in product(*choices))


def _of_side(point: Point, side: str) -> list[str]:
    """The overrides of one side: what both have, then its own."""
    both = [f"{key}={value}" for key, value in point.items() if key not in LENGTHS and key.partition(".")[0] not in SIDES]
    return both + [f"{key.removeprefix(f'{side}.')}={value}" for key, value in point.items() if key.startswith(f"{side}.")]


def _written(rows: Sequence[dict[str, Any]], output: Path) -> Path:
    """One Parquet file of all rows, named after them."""
    import polars as pl

    name = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:12]
    file = output / "disaggregated" / f"{name}.parquet"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows).write_parquet(file)
    except OSError as error:
        raise InputError(f"output={output}: {file} cannot be written ({error.strerror})") from error
    return file


def _table(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> SweptTable:
    from clustersim.results.swept import SweptTable
    from clustersim.units import format_bytes, format_seconds

    def each(show: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return tuple(map(show, rows))

    return SweptTable(
        keys=tuple(varied), jobs=tuple(tuple(str(row[key]) for key in varied) for row in rows),
        results={
            "requests/s": each(lambda row: f"{row['requests_per_s']:,.1f}"),
            "limit": each(lambda row: str(row["limit"])),
            "match": each(lambda row: f"{row['nodes_to_match']:.2f}"),
            "first token": each(lambda row: format_seconds(row["first_token_s"])),
            "per token": each(lambda row: format_seconds(row["per_token_s"])),
            "cache": each(lambda row: format_bytes(row["cache_bytes"])),
            "NICs busy": each(lambda row: ", ".join(f"{100 * row[f'{side}_nic_share']:.1f} %" for side in SIDES)),
        },
        caption="match: nodes that prefill for each that decodes, for both to keep up; first token: without queues;\n"
        "NICs busy: with caches, where prefill and where decoding is done; not in the times",
        spare=("NICs busy", "cache"),
    )  # fmt: skip
