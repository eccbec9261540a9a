"""A user's own measurements to the YAML of a kernel and of a topology: which constants, and checked on what. Prints nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clustersim.kernels import load_kernel, trying
from clustersim.pick import find
from clustersim.types import Floats, InputError
from clustersim.validation import kinds
from clustersim.validation.fitting import Fit, least_squares
from clustersim.validation.machines import TOPOLOGIES
from clustersim.validation.rows import Row
from clustersim.writing import replacing

FREE: Mapping[str, tuple[str, ...]] = {     # exchange -> its constants, those first that a few rows can tell
    "nccl_alltoall": ("ports.nvlink_share", "nccl.base_simple", "nccl.sm_rate", "nccl.base_ll"),
    "deepep_normal": ("ports.round", "deepep_v1.wait", "ports.sm_rate", "ports.nvlink_share", "ports.nic_share"),
    "deepep_low_latency": (
        "ports.round", "ports.nvlink_share", "deepep_low_latency.combine_share", "ports.nic_share", "deepep_low_latency.message",
    ),
}  # fmt: skip
KERNEL = {"nccl_alltoall": "nccl", "deepep_normal": "deepep_v1", "deepep_low_latency": "deepep_low_latency"}
HELD_OUT = 4            # every fourth row is kept aside for the check
ENOUGH = 8              # rows from which there is one


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Calibrated:
    """What the measurements say."""

    exchange: str
    kernel: str
    rows: list[Row]
    simulated: list[float]              # [rows] with the constants found, in SI
    fit: Fit
    held_out: list[float]               # |relative error| of rows that a fit did not see; [] for too few rows
    nvlink: float | None                # bytes/s of a pair of GPUs each way, from nvbandwidth; None without


def calibrate(rows: list[Row]) -> Calibrated:
    """Fit the constants of the one kernel that the rows are of.

    Raises:
        InputError: rows of no kernel or of several, a case that is not modelled.
    """
    links = [row.value for row in rows if row.case["what"] == "link"]
    timed = [row for row in rows if row.case["what"] == "exchange"]
    names = sorted({str(row.case["exchange"]) for row in timed})
    if len(names) != 1:
        said = f"measurements of {' and '.join(names)}; calibrate one kernel at a time" if names else "no log of an exchange"
        raise InputError(f"calibrate: {said}")
    free = FREE[names[0]][: max(1, len(timed) - 1)]
    kernel = KERNEL[names[0]]
    start = {key: _value(key) for key in free}
    fit = _fit(start, timed)
    held: list[float] = []
    if len(timed) >= ENOUGH:
        apart = [row for i, row in enumerate(timed) if i % HELD_OUT == HELD_OUT - 1]
        rest = _fit(start, [row for i, row in enumerate(timed) if i % HELD_OUT != HELD_OUT - 1])
        held = np.abs(np.expm1(_logs(rest.values, apart))).tolist()
    with trying(fit.values):
        simulated = [_simulated(row) for row in timed]
    return Calibrated(
        exchange=names[0], kernel=kernel, rows=timed, simulated=simulated, fit=fit, held_out=held,
        nvlink=statistics.median(links) if links else None,
    )  # fmt: skip


def _value(key: str) -> float:
    kernel, _, leaf = key.rpartition(".")
    return load_kernel(kernel)[leaf]


def _fit(start: Mapping[str, float], rows: list[Row]) -> Fit:
    return least_squares(start, lambda values: _logs(values, rows))


def _logs(values: Mapping[str, float], rows: list[Row]) -> Floats:
    with trying(values):
        return np.array([math.log(_simulated(row) / row.value) for row in rows])


def _simulated(row: Row) -> float:
    return float(find(kinds, "exchange", "case.what")({**row.case, "statistic": "mean"}))


def write_kernel(found: Calibrated, path: Path) -> list[Path]:
    """Write the kernel's YAML, and beside it the topology's where nvbandwidth was among the logs; the files written.

    Raises:
        InputError: a file cannot be written.
    """
    import yaml

    kernel = load_kernel(found.kernel)
    sources = ", ".join(dict.fromkeys(row.source for row in found.rows))
    constants: dict[str, Any] = {}
    for key, one in kernel.constants.items():
        full = one.same_as or f"{found.kernel}.{key}"
        if full in found.fit.values and found.fit.intervals[full][1] < math.inf:
            constants[key] = {
                "value": found.fit.values[full], "evidence": "calibrated on yours", "fitted": True,
                "interval": list(found.fit.intervals[full]), "rows": f"{len(found.rows)} rows of {sources}", "source": sources,
            }  # fmt: skip
        elif one.same_as:
            constants[key] = {"same_as": one.same_as, "source": one.source}
        else:
            constants[key] = {"value": one.value, "evidence": one.evidence, "source": one.source}
    covers = {
        key: [min(values), max(values)] for key in ("tokens_per_gpu", "sms", "gpus")
        if (values := [row.case[key] for row in found.rows if row.case.get(key) is not None])
    }  # fmt: skip
    given = {"covers": covers, "limits": dict(kernel.limits), "constants": constants}
    text = f"# {kernel.title}, calibrated on your measurements\n{yaml.safe_dump(given, sort_keys=False, width=130)}"
    files = {path: text}
    if found.nvlink is not None:
        files[path.with_name(f"{path.stem}_topology.yaml")] = _topology(found)
    try:
        for file, content in files.items():
            with replacing(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"calibrate -o {path}: cannot be written ({error.strerror})") from error
    return list(files)


def _topology(found: Calibrated) -> str:
    import yaml

    from clustersim.places import data_folder

    name = TOPOLOGIES[found.rows[0].case["gpu"]]
    text = (data_folder("topologies") / f"{name}.yaml").read_text(encoding="utf-8")
    fields = yaml.safe_load(text)
    assert found.nvlink is not None
    fields["nvlink"]["achievable"] = f"{found.nvlink / 1e9:.6g} GB/s"
    fields["sources"]["nvlink.achievable"] = "your nvbandwidth"
    return f"{text.partition(chr(10))[0]}, NVLink as you measured it\n{yaml.safe_dump(fields, sort_keys=False, width=130)}"
