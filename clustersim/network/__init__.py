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
    from clustersim.network import kernel, packet_kernel

    run = kernel.run if network == "fluid" else packet_kernel.run

    def look() -> None:
        if not run.signatures:
            say()

    if not run.signatures:
        timer = threading.Timer(2.0, look)
        timer.daemon = True
        timer.start()
