"""Every flow against SimGrid: `python -m tests.oracle.simgrid` plays systems there and here and says how far apart.

SimGrid (LGPL, https://simgrid.org) is a library for our small C++ program; no part of it is here. Without it, `--stored`
compares with what it said when the results in `tests/data/simgrid.npz` were recorded (`--record`).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clustersim import flow_times
from clustersim.types import Floats, InputError
from tests.oracle.systems import KINDS, System, direct_skewed

HERE = Path(__file__).parent
SOURCE, PROGRAM = HERE / "simgrid_flows.cpp", HERE.parents[1] / "build" / "simgrid_flows"
STORED, LONG_STORED = (HERE.parent / "data" / f"{name}.npz" for name in ("simgrid", "simgrid_256"))
LONG = {"direct, skewed, 256 GPUs": (direct_skewed, {256: [0]})}        # SimGrid takes ten minutes and more: only when named
FLUID = (        # plain max-min over the links of a route: no TCP, no share for the way back
    "network/model:CM02", "network/crosstraffic:0", "network/bandwidth-factor:1", "network/latency-factor:1",
    "network/weight-S:0",
)  # fmt: skip
PRECISE = (      # by default it takes flows for ended whose ends are up to tens of ns off: 1e-2 of a short one
    "surf/precision:1e-14", "maxmin/precision:1e-9",
)  # fmt: skip


class NoSimGrid(Exception):
    """The one line that says what to install."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What SimGrid says of a system."""

    finish: Floats              # [flows] seconds
    cpu_s: float                # CPU seconds of its simulation, without reading and building the system


def program() -> Path:
    """The C++ program, compiled when it is not there or older than its source.

    Raises:
        NoSimGrid: there is no compiler, or no SimGrid.
    """
    if PROGRAM.is_file() and PROGRAM.stat().st_mtime > SOURCE.stat().st_mtime:
        return PROGRAM
    if shutil.which("g++") is None:
        raise NoSimGrid("there is no C++ compiler; apt-get install g++ libsimgrid-dev brings both that and SimGrid")
    PROGRAM.parent.mkdir(exist_ok=True)
    made = subprocess.run(
        ["g++", "-O2", "-std=c++17", "-o", str(PROGRAM), str(SOURCE), "-lsimgrid"], capture_output=True, text=True, check=False
    )
    if "simgrid/s4u.hpp: No such file" in made.stderr:
        raise NoSimGrid("SimGrid is not installed; apt-get install libsimgrid-dev brings it (or see https://simgrid.org)")
    if made.returncode != 0:
        raise RuntimeError(made.stderr)
    return PROGRAM


def play(system: System, options: Sequence[str] = FLUID + PRECISE) -> Answer:
    """Play a system in SimGrid; a rate cap is a link of the flow's own there."""
    links, flows = system.capacity.tolist(), []
    rows = zip(system.routes, system.release.tolist(), system.nbytes.tolist(), strict=True)
    for i, (route, release, nbytes) in enumerate(rows):
        crossed = list(route)
        if system.rate_cap is not None and np.isfinite(system.rate_cap[i]):
            crossed.append(len(links))
            links.append(float(system.rate_cap[i]))
        flows.append(" ".join(["flow", repr(release), repr(nbytes), *map(str, crossed)]))
    lines = [f"link {capacity!r}" for capacity in links] + flows
    lines += [f"change {time!r} {link} {capacity!r}" for time, link, capacity in system.changes]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        arguments = [str(program()), file.name, "--log=root.threshold:error", *(f"--cfg={option}" for option in options)]
        told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.split()
    return Answer(finish=np.array(told[1:], np.float64), cpu_s=float(told[0]))


def store(path: Path, answers: Sequence[tuple[str, System, Answer]]) -> None:
    """Keep answers: one row of `index` and a stretch of `finish` for each."""
    index = [
        {"kind": kind, "name": system.name, "n": system.n, "digest": system.digest(), "cpu_s": answer.cpu_s}
        for kind, system, answer in answers
    ]
    made = {"by": f"SimGrid {version()}", "options": FLUID + PRECISE, "units": "seconds", "systems": index}
    np.savez_compressed(path, index=json.dumps(made), finish=np.concatenate([answer.finish for _, _, answer in answers]))


def version() -> str:
    """Of SimGrid, as its library says."""
    said = subprocess.run([str(program()), "--version"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"version (\d[\d.]*)", said)[0]


def stored(long: bool = False) -> dict[tuple[str, str], tuple[int, Answer]]:
    """What was recorded: (kind, name) -> digest of the system, and SimGrid's answer."""
    with np.load(LONG_STORED if long else STORED) as file:
        index, finish = json.loads(str(file["index"]))["systems"], file["finish"]
    ends = np.cumsum([row["n"] for row in index])
    return {
        (row["kind"], row["name"]): (row["digest"], Answer(finish=finish[end - row["n"] : end], cpu_s=row["cpu_s"]))
        for row, end in zip(index, ends, strict=True)
    }


@dataclass(frozen=True, eq=False)
class Compared:
    """One system, here and there."""

    system: System
    over_bound: float           # makespan / bound of the busiest link; NaN where capacities change or rates are capped
    apart: Floats               # [flows] difference of the ends relative to the time that the flow took


def compare(system: System, answer: Answer) -> Compared:
    finish = flow_times(**system.question())
    free = system.rate_cap is None and not system.changes
    return Compared(
        system=system, over_bound=float(finish.max()) / system.bound() if free else np.nan,
        apart=np.abs(finish - answer.finish) / (answer.finish - system.release),
    )  # fmt: skip


def compared(kinds: Sequence[str], *, live: bool) -> Iterator[tuple[str, Answer, Compared]]:
    """All systems of these kinds, with SimGrid run now (`live`) or as stored.

    Raises:
        InputError: a system is not the one whose result is stored.
    """
    for kind in kinds:
        answers = {} if live else stored(kind in LONG)
        for system in systems(kind):
            if live:
                answer = play(system)
            else:
                digest, answer = answers[kind, system.name]
                if digest != system.digest():
                    raise InputError(f"{kind}, {system.name}: not the system that was recorded; record it anew (--record)")
            yield kind, answer, compare(system, answer)


def systems(kind: str) -> Iterator[System]:
    make, seeds_of = (KINDS | LONG)[kind]
    return (make(n, seed) for n, seeds in seeds_of.items() for seed in seeds)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.simgrid", description=__doc__.splitlines()[0])
    parser.add_argument("--stored", action="store_true", help="compare with the recorded results; needs no SimGrid")
    parser.add_argument("--record", action="store_true", help="record the results anew")
    parser.add_argument("--kind", choices=KINDS | LONG, action="append", help="only these systems (default: all but 256 GPUs)")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    try:
        if options.record:
            if options.kind not in (None, list(LONG)):
                parser.error(f"--record is for all kinds together, or for --kind '{next(iter(LONG))}' alone")
            path = LONG_STORED if options.kind else STORED
            store(path, [(kind, system, play(system)) for kind in kinds for system in systems(kind)])
        report(list(compared(kinds, live=not (options.stored or options.record))))
    except NoSimGrid as missing:
        print(missing, file=sys.stderr)
        return 2
    return 0


def report(rows: list[tuple[str, Answer, Compared]]) -> None:
    """One line per kind, and one for all."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("systems", "", "flows", "T/b > 1.05", "most", "p50", "p99", "worst", "its CPU s"):
        table.add_column(heading, justify="left" if heading == "systems" else "right", no_wrap=True)
    for kind in [*dict.fromkeys(kind for kind, _, _ in rows), "all"]:
        ones = [row for row in rows if kind in (row[0], "all")]
        apart = np.concatenate([one.apart for _, _, one in ones])
        ratio = np.array([one.over_bound for _, _, one in ones])
        most = f"{np.nanmax(ratio):.3f}" if np.isfinite(ratio).any() else ""
        table.add_row(
            kind, str(len(ones)), f"{apart.size:,}", str((ratio > 1.05).sum()) if most else "", most,
            *(f"{value:.0e}" for value in np.quantile(apart, (0.5, 0.99, 1))), f"{sum(a.cpu_s for _, a, _ in ones):.1f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print("T/b: makespan / busiest link's; p50, p99, worst over the flows: |our end - SimGrid's| / time it took")


if __name__ == "__main__":
    sys.exit(main())
