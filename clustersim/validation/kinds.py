"""What a row may have measured: one plain function per kind, found by the case's `what`. Fits nothing, reads no file.

`name(case) -> value` in SI: seconds, FLOP/s, a ratio. The case has the keys of `docs/validation.md` and, from its group,
`statistic`. An `InputError` says why a case is not modelled, and becomes the row's reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clustersim.validation.exchanges import exchange
from clustersim.validation.gemms import expert_compute, gemm
from clustersim.validation.identities import closed_form, distinct_places, dropped, eplb, load, share_of_slots, sigmas, worst_part
from clustersim.validation.imbalances import imbalance
from clustersim.validation.moe_layers import moe_layer
from clustersim.validation.steps import step
from clustersim.validation.training_steps import attention

distinct = distinct_places

__all__ = [
    "attention", "closed_form", "distinct", "dropped", "eplb", "exchange", "expert_compute", "gemm", "imbalance", "load",
    "moe_layer", "step",
]  # fmt: skip

NOT_YET: dict[str, str] = {}    # kinds that rows of the table have and nothing simulates, and what to say of them

ERRORS: dict[str, Callable[[Any, Any, Mapping[str, Any]], float]] = {       # kinds whose error is not simulated / measured - 1
    "dropped": sigmas, "load": worst_part, "eplb": share_of_slots,
}  # fmt: skip


def forget() -> None:
    """Drop what is kept from row to row (drawn tokens, built machines)."""
