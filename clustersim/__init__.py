"""clustersim: GPU clusters that run mixture-of-experts models, simulated from router decisions to seconds.

What the command line does is here as functions; they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clustersim.capture.recording import record
    from clustersim.cluster import Cluster, load_cluster
    from clustersim.disaggregation import Disaggregated, disaggregated
    from clustersim.network.freeform import flow_times
    from clustersim.network.pairs import transfer
    from clustersim.outcome import Result
    from clustersim.results.store import scan
    from clustersim.simulation import simulate
    from clustersim.types import InputError, TransferResult
    from clustersim.workload.trace import read_trace

__version__ = "0.1.0"
__all__ = [
    "Cluster", "Disaggregated", "InputError", "Result", "TransferResult", "disaggregated", "flow_times", "load_cluster",
    "read_trace", "record", "scan", "simulate", "transfer",
]  # fmt: skip

_HOME = {
    "Cluster": "cluster", "load_cluster": "cluster", "transfer": "network.pairs", "flow_times": "network.freeform",
    "Disaggregated": "disaggregation", "disaggregated": "disaggregation", "scan": "results.store", "Result": "outcome",
    "simulate": "simulation", "InputError": "types", "TransferResult": "types", "read_trace": "workload.trace",
    "record": "capture.recording",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clustersim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"clustersim.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
