"""Where experts live: plain functions from experts, slots and GPUs to a `Placement`. Pure NumPy, no clock.

Which of an expert's replicas a token goes to is decided in `placement.replicas`.
"""

from clustersim.placement.static import contiguous, round_robin

__all__ = ["contiguous", "round_robin"]
