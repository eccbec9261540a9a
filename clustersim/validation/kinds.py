"""What a row may have measured: one plain function per kind, found by the case's `what`. Fits nothing, reads no file.

`name(case) -> value` in SI: seconds, FLOP/s, a ratio. The case has the keys of `docs/validation.md` and, from its group,
`statistic`. An `InputError` says why a case is not modelled, and becomes the row's reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clustersim.validation.gemms import expert_compute, gemm

__all__: list[str] = ["expert_compute", "gemm"]

NOT_YET = {                     # kinds that rows of the table have and nothing simulates
    "exchange": "exchanges are not simulated yet",
    "step": "whole steps are not simulated yet",
    "imbalance": "imbalance before and after a placement is not simulated yet",
    "distinct": "distinct nodes and ranks are not counted yet",
    "dropped": "drops are not counted yet",
    "closed_form": "closed forms are not simulated yet",
    "load": "recorded counts are not replayed yet",
    "eplb": "DeepSeek's EPLB is not built yet",
}

ERRORS: dict[str, Callable[[Any, Any, Mapping[str, Any]], float]] = {}      # kinds whose error is not simulated / measured - 1


def forget() -> None:
    """Drop what is kept from row to row (drawn tokens, built machines)."""
