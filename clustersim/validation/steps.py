"""The kind `step`: whole steps, by their phase. Simulates nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.validation.serving_steps import serving_step


def step(case: Mapping[str, Any]) -> float:
    """Seconds, tokens per second or FLOP/s of a step.

    Raises:
        InputError: a phase that is not there, or what the phase's own function raises.
    """
    phase = case.get("phase")
    if phase in ("prefill", "decode"):
        return serving_step(case)
    known = ("prefill", "decode")
    raise InputError(f"case.phase={phase}: must be prefill or decode; training is not compared{did_you_mean(str(phase), known)}")
