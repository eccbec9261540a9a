"""`clustersim calibrate LOGS`: constants of a kernel from logs of benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustersim.commands.arguments import whole_number
from clustersim.commands.screen import stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    given: dict[str, Any] = {}
    kinds: dict[str, Callable[[str, str], Any]] = {
        "gpu": lambda key, text: text, "nic": lambda key, text: text,
        **dict.fromkeys(("gpus", "gpus_per_node", "experts", "hidden", "top_k", "tokens_per_gpu"), whole_number),
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
    from clustersim.validation.calibration import calibrate, write_kernel
    from clustersim.validation.logs import read_log
    from clustersim.validation.shown import calibrated_tables

    found = calibrate([row for log in logs for row in read_log(log, given)])
    console = stdout_console(edge=False)
    for table in calibrated_tables(found):
        console.print(table)
    files = write_kernel(found, Path(out))
    console.print(f"constants in {files[0]}; use them: clustersim exchange={found.exchange} exchange.kernel={files[0]}")
    for file in files[1:]:
        console.print(f"machine in {file}; use it: clustersim topology={file}")
    return 0
