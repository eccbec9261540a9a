"""The kind `step`: whole steps, by the phase that they are of. Simulates none itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.validation.notes import needed
from clustersim.validation.serving_steps import serving_step
from clustersim.validation.training_steps import training_step

PHASES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "training": training_step, "prefill": serving_step, "decode": serving_step,
}  # fmt: skip


def step(case: Mapping[str, Any]) -> float:
    """A step in its metric, in SI.

    Raises:
        InputError: a phase or a key that is not known, a value that cannot be.
    """
    (phase,) = needed(case, "phase")
    if phase not in PHASES:
        near = did_you_mean(str(phase), PHASES)
        raise InputError(f"case.phase={phase}: whole steps are simulated of {', '.join(PHASES)}{near}")
    return PHASES[str(phase)](case)
