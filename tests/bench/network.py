"""What the network costs: `python -m tests.bench.network` prints every case, what was measured and what it must be.

Seconds are CPU seconds of one core, compiled and warm; on a busy machine they are up to twice those of a quiet one.
Solves and visits mean the same on every machine. `--simgrid` runs SimGrid beside 64 and 128 GPUs (it takes half a minute).
"""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console
from rich.table import Table

from clustersim.types import InputError
from tests.bench.rows import ROWS
from tests.oracle.simgrid import NoSimGrid


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.network", description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS, action="append", help="only this case; may be given more than once")
    parser.add_argument("--quick", action="store_true", help="each once, short forward passes, 512 GPUs for 2,048")
    parser.add_argument("--simgrid", action="store_true", help="run SimGrid now where it takes less than a minute")
    options = parser.parse_args()
    table = Table(box=None, header_style="bold")
    for heading in ("case", "quantity", "measured", "must", ""):
        table.add_column(heading, justify="right" if heading in ("measured", "must") else "left", no_wrap=True)
    console, failed = Console(), 0
    for row in options.row or ROWS:
        with console.status(row):
            try:
                lines = list(ROWS[row](quick=options.quick, with_simgrid=options.simgrid))
            except (InputError, NoSimGrid) as error:
                table.add_row(row, str(error))
                continue
        for i, line in enumerate(lines):
            said = "" if line.holds is None else "yes" if line.holds else "NO"
            failed += line.holds is False
            table.add_row(line.case if i == 0 else "", line.quantity, line.measured, line.must, said)
        table.add_section()
    console.print(table)
    console.print(f"{failed} below what it must be; load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
