"""GPU-hours, dollars and joules of a step, a token and a whole run. Arithmetic only: without prices and powers it gives none.

A device draws its idle power all the time and, while it works, what is between that and its peak. A GPU works while its compute
stream does; one that waits is counted as idle, though kernels that poll draw more, so joules are a low estimate where much is
waited. Fans, CPUs, memory and cooling are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clustersim.cluster import Cluster
from clustersim.types import InputError

COLUMNS = (
    "gpu_hours_per_million_tokens", "dollars_per_million_tokens", "joules_per_step", "joules_per_token", "run_gpu_hours",
    "run_dollars", "run_joules",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What is paid."""

    price: float | None = None          # dollars per GPU-hour
    tokens: float | None = None         # of a whole run

    def __post_init__(self) -> None:
        for key in ("price", "tokens"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
                raise InputError(f"cost.{key}={value}: must be a number above 0, or null")


def cost_from(config: Mapping[str, Any]) -> Cost:
    """What the config group `cost` says."""
    return Cost(price=config["price"], tokens=config["tokens"])


def cost_row(row: Mapping[str, Any], cost: Cost, cluster: Cluster, gpus: int) -> dict[str, float | None]:
    """`COLUMNS`, from a step's `step_s`, `compute_s`, `tokens` and `nic_bytes`; None where an input is not given.

    Where the row has `tokens_per_s`, these are the tokens that count: of what decoding verifies, what it keeps.

    Args:
        gpus: of the step; `cluster` may be a part of the machine that stands for the rest.
    """
    step_s = row["step_s"]
    tokens = row["tokens_per_s"] * step_s if row.get("tokens_per_s") else row["tokens"]
    hours = gpus * step_s / 3600 / tokens
    joules = step_joules(row, cluster, gpus)
    per_token = None if joules is None else joules / tokens
    return {
        "gpu_hours_per_million_tokens": 1e6 * hours,
        "dollars_per_million_tokens": _times(1e6 * hours, cost.price),
        "joules_per_step": joules,
        "joules_per_token": per_token,
        "run_gpu_hours": _times(hours, cost.tokens),
        "run_dollars": _times(_times(hours, cost.tokens), cost.price),
        "run_joules": _times(per_token, cost.tokens),
    }


def step_joules(row: Mapping[str, Any], cluster: Cluster, gpus: int) -> float | None:
    """Of GPUs, NICs and switch ports; None where the machine does not say what a GPU draws.

    NICs and ports without figures are left out. Where the bytes on NICs are not known they are taken to work all the time.
    """
    power, step_s = cluster.power, row["step_s"]
    if power is None or power.gpu_idle is None or power.gpu_peak is None:
        return None
    nics = [link for link in cluster.links if link.kind == "nic_up"]
    scale = gpus / cluster.n_gpus
    rate = sum(link.capacity for link in nics) * scale
    sent = row.get("nic_bytes")
    busy = 1.0 if sent is None else min(1.0, sent / (rate * step_s)) if rate and step_s else 0.0
    return (
        _drawn(power.gpu_idle, power.gpu_peak, step_s, row["compute_s"]) * gpus
        + _drawn(power.nic_idle, power.nic_peak, step_s, busy * step_s) * len(nics) * scale
        + _drawn(power.port_idle, power.port_peak, step_s, busy * step_s) * switch_ports(cluster) * scale
    )


def switch_ports(cluster: Cluster) -> float:
    """Ports of a NIC's rate on all network switches: a link of eight times that rate has eight at either end."""
    rates = [link.capacity for link in cluster.links if link.kind == "nic_up"]
    if not rates:
        return 0.0
    wires = cluster.links[: cluster.n_wires]
    ends = sum(
        link.capacity * (1 if link.kind.startswith("nic") else 2) for link in wires
        if not link.kind.startswith(("nvlink", "pcie"))
    )  # fmt: skip
    return ends / 2 / (sum(rates) / len(rates))         # links go one way: a cable is two of them


def _drawn(idle: float | None, peak: float | None, all_s: float, working_s: float) -> float:
    return 0.0 if idle is None or peak is None else idle * all_s + (peak - idle) * working_s


def _times(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other

