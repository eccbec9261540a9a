"""Each group scored with constants that none of its own rows has set: what the simulator would say of a system not seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from clustersim.kernels import fitted_constants, trying
from clustersim.types import Floats
from clustersim.validation.fitting import least_squares
from clustersim.validation.rows import Row
from clustersim.validation.scoring import conventions, score

WIDER = 1.5             # a group may be this much further off than its bar
COPYING = ("ports.nvlink_share", "ports.sm_rate", "ports.nic_share", "deepep_v1.launch")
STEADY = {"V6": ("tokens_per_gpu", 512), "V7": ("bytes_per_gpu", 1 << 26)}      # rows that bandwidth decides
ALONE: Mapping[str, Mapping[str, str]] = {     # constants that only a group's own rows can set -> what stands in for them
    "V2": {"deepep_low_latency.nvlink_share": "ports.nvlink_share", "deepep_low_latency.handshake": "deepep_low_latency.launch"},
    "V6": {
        "trtllm_one_sided.handshake_dispatch": "deepep_low_latency.handshake",
        "trtllm_one_sided.handshake_combine": "deepep_low_latency.handshake",
    },
}
FITTED_ON: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {     # group -> constants fitted again, whose rows do it
    "V2": (("deepep_low_latency.launch", "deepep_low_latency.message"), ("V1",)),
    "V4": (COPYING, ("V3", "V5", "V6", "V7")),
    "V6": (("ports.nvlink_share",), ("V4", "V7")),
    "V7": (("ports.nvlink_share", "ports.sm_rate"), ("V4", "V6")),
}


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


def leave_one_out(rows: list[Row], progress: Callable[[float, str], None] = lambda fraction, what: None) -> list[Left]:
    """Every group of measurements that is modelled, each scored without what its own rows have taught."""
    groups = conventions()
    names = [name for name, group in groups.items() if not group.get("identity") and any(r.group == name for r in rows)]
    found = []
    for i, name in enumerate(names):
        progress(i / len(names), name)
        values, came_from = _elsewhere(name, rows)
        with trying(values):
            scored = [one for one in score([row for row in rows if row.group == name]) if one.error is not None]
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


def _elsewhere(name: str, rows: list[Row]) -> tuple[dict[str, float], str]:
    """The constants of a group as other groups' rows set them, and which did."""
    if name not in FITTED_ON:
        return {}, "none of its rows set a constant"
    fitted, teachers = FITTED_ON[name]
    known = {key: one.value for key, one in fitted_constants().items()}
    teaching = [row for row in rows if row.group in teachers and _steady(row)]

    def residuals(values: Mapping[str, float]) -> Floats:
        with trying(values):
            return np.array([math.log1p(one.error) for one in score(teaching) if one.error is not None])

    fit = least_squares({key: known[key] for key in fitted}, residuals, rounds=4)
    values = dict(fit.values)
    for key, other in ALONE.get(name, {}).items():
        values[key] = values.get(other, known[other])
    said = f"{', '.join(key.rpartition('.')[2] for key in fitted)} from {', '.join(teachers)}"
    if name in ALONE:
        said += "; " + ", ".join(f"{key.rpartition('.')[2]} as {other}" for key, other in ALONE[name].items())
    return values, said


def _steady(row: Row) -> bool:
    key, least = STEADY.get(row.group, ("", 0))
    return not key or row.case.get(key, 0) >= least
