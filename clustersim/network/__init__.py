"""How long transfers take: links shared by flows, on the event loop or alone.

A network is `name(env, cluster, *, options)`; what it returns opens exchanges (`.exchange(transfers)`), which GPUs enter.
"""

import threading
from collections.abc import Callable

from clustersim.network.fabric import bound, fluid, packet

__all__ = ["bound", "fluid", "packet"]


def when_compiling(say: Callable[[], None], network: str = "fluid") -> None:
    """Have `say` called when a network's solver is not ready in two seconds from now: it is being compiled then, not loaded."""
    if network not in ("fluid", "packet"):
        return
    from clustersim.network import coarse_kernel, kernel, packet_kernel

    solvers = (kernel, coarse_kernel) if network == "fluid" else (packet_kernel,)       # exact, or in coarse steps

    def look() -> None:
        if not any(solver.run.signatures for solver in solvers):
            say()

    if not any(solver.run.signatures for solver in solvers):
        timer = threading.Timer(2.0, look)
        timer.daemon = True
        timer.start()
