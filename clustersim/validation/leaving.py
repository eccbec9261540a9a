"""The constants, fitted again: all of them on the rows that set them, and each group's without its own rows. Changes no file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from clustersim.kernels import fitted_constants, load_kernel, trying
from clustersim.types import Floats
from clustersim.validation.fitting import Fit, least_squares
from clustersim.validation.rows import FOLDER, Row, read_rows
from clustersim.validation.scoring import conventions, score

Progress = Callable[[float, str], None]
WIDER = 1.5             # a group may be this much further off than its bar
LARGE = {"V7": ("bytes_per_gpu", 1 << 20)}      # smaller ones wait for latencies, which NCCL's source gives
SQUARES, EIGHTH = 2, 8  # powers of a row's error, in units of its bar, whose sum is least
SETS: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (      # constants, groups whose rows set them together
    (
        ("ports.nvlink_share", "trtllm_one_sided.handshake_dispatch", "trtllm_one_sided.handshake_combine", "nccl.sm_rate"),
        ("V6", "V7"), SQUARES,
    ),
    (
        (
            "ports.round", "deepep_low_latency.launch", "deepep_low_latency.message", "deepep_low_latency.combine_share",
        ),
        ("V2",), EIGHTH,        # two of its rows pull against each other by 25 %, and its bar of the worst is 12 %
    ),
    (("ports.sm_rate", "ports.nic_share", "deepep_v1.wait"), ("V4",), SQUARES),
    (("megatron.bf16_share", "megatron.fp8_share"), ("V11",), SQUARES),
)  # fmt: skip
FITTED_ON: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {     # group -> constants fitted again, whose rows do it
    "V2": (
        (
            "ports.round", "deepep_low_latency.launch", "deepep_low_latency.message", "deepep_low_latency.combine_share",
        ),
        ("V1", "V4", "H200"),
    ),
    "V4": (("ports.nic_share", "deepep_v1.wait"), ("V2", "V3", "V5")),
    "V6": (("ports.nvlink_share",), ("V7",)),
    "V7": (("ports.nvlink_share",), ("V6",)),
    "V11": (("megatron.bf16_share",), ("V12",)),         # its GEMMs are inside a layer, too
}
ASIDE: Mapping[str, tuple[str, dict[str, str]]] = {     # teachers among the rows put aside -> whose bars they have, cases
    "H200": ("V2", {"gpu": "h200_sxm", "exchange": "deepep_low_latency"}),
}
ALONE: Mapping[str, Mapping[str, tuple[tuple[str, float], ...]]] = {    # constants that no other rows tell -> a sum of others
    "V6": {
        # a load on GB200 against one on H100; before a dispatch a kernel clears the counters, in a combine one fills the buffer
        "trtllm_one_sided.handshake_dispatch": (("ports.round", 463 / 377), ("gemm.memory_pass", 1.0)),
        "trtllm_one_sided.handshake_combine": (("ports.round", 2 * 463 / 377),),
    },
    "V4": {"ports.sm_rate": (("nccl.sm_rate", 1.0),)},
    "V7": {"nccl.sm_rate": (("ports.sm_rate", 1.0),)},
    "V11": {"megatron.fp8_share": (("megatron.bf16_share", 1.0),)},      # of the fastest that a search finds, in either format
}


def refit(rows: list[Row], progress: Progress = lambda fraction, what: None) -> list[tuple[tuple[str, ...], Fit]]:
    """Every set of constants that the table's rows set, fitted from where it is now: the groups and what comes out."""
    found = []
    for i, (constants, groups, power) in enumerate(SETS):
        progress(i / len(SETS), ", ".join(groups))
        found.append((groups, _fit(constants, [row for row in rows if row.group in groups and _large(row)], power)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A group without its own calibration rows."""

    group: str
    constants: dict[str, float]         # those that were set anew, in SI; {}: none of its rows had set any
    came_from: str
    median: float
    worst: float                        # the largest of |error| / bar, times the group's own bar
    bar_median: float                   # WIDER x the group's
    bar_worst: float

    @property
    def ok(self) -> bool:
        return self.median <= self.bar_median and self.worst <= self.bar_worst


def leave_one_out(rows: list[Row], progress: Progress = lambda fraction, what: None) -> list[Left]:
    """Every group of measurements that is modelled, each scored without what its own rows have taught."""
    groups = conventions()
    names = [name for name, group in groups.items() if not group.get("identity") and any(r.group == name for r in rows)]
    found = []
    for i, name in enumerate(names):
        progress(i / len(names), name)
        values, came_from = _elsewhere(name, rows)
        with trying(values):
            scored = [one for one in score(_counted(name, rows)) if one.error is not None]
        if not scored:
            continue
        bar = groups[name]["bar"]
        worst = max(abs(one.error or 0.0) / (one.bar or math.inf) for one in scored) * bar["worst"]
        found.append(Left(
            group=name, constants=values, came_from=came_from, worst=worst,
            median=statistics.median(abs(one.error or 0.0) for one in scored), bar_median=WIDER * bar["median"],
            bar_worst=WIDER * bar["worst"],
        ))  # fmt: skip
    return found


def _counted(name: str, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.group == name and "aside" not in row.case]


def _elsewhere(name: str, rows: list[Row]) -> tuple[dict[str, float], str]:
    """The constants of a group as other groups' rows set them, and which did."""
    if name not in FITTED_ON:
        return {}, "none of its rows set a constant"
    fitted, teachers = FITTED_ON[name]
    values = dict(_fit(fitted, [row for teacher in teachers for row in _taught_by(teacher, rows)]).values)
    told = [f"{_leaves(fitted)} from {', '.join(teachers)}"]
    for key, terms in ALONE.get(name, {}).items():
        values[key] = sum(times * (values.get(other) or _value(other)) for other, times in terms)
        summed = " + ".join(other if times == 1 else f"{times:.3g} {other}" for other, times in terms)
        told.append(f"{_leaves([key])} as {summed}")
    return values, "; ".join(told)


def _taught_by(teacher: str, rows: list[Row]) -> list[Row]:
    if teacher not in ASIDE:
        return [row for row in rows if row.group == teacher and _large(row)]
    group, case = ASIDE[teacher]
    aside = read_rows(FOLDER / "data" / "aside.jsonl")
    return [replace(row, group=group) for row in aside if all(row.case.get(key) == value for key, value in case.items())]


def _fit(constants: Iterable[str], rows: list[Row], power: int = SQUARES) -> Fit:
    known = {key: one.value for key, one in fitted_constants().items()}

    def residuals(values: Mapping[str, float]) -> Floats:
        with trying(values):
            errors = np.array([math.log1p(one.error) / (one.bar or 1.0) for one in score(rows) if one.error is not None])
        powered: Floats = np.sign(errors) * np.abs(errors) ** (power / 2)
        return powered

    return least_squares({key: known[key] for key in constants}, residuals, rounds=4)


def _value(key: str) -> float:
    kernel, _, leaf = key.rpartition(".")
    return load_kernel(kernel)[leaf]


def _leaves(keys: Iterable[str]) -> str:
    return ", ".join(key.rpartition(".")[2] for key in keys)


def _large(row: Row) -> bool:
    key, least = LARGE.get(row.group, ("", 0))
    return not key or row.case.get(key, 0) >= least
