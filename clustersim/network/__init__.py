"""How long transfers take: links shared by flows, on the event loop or alone.

A network is `name(env, cluster, *, options)`; what it returns opens exchanges (`.exchange(transfers)`), which GPUs enter.
"""

import threading
from collections.abc import Callable

from clustersim.network.fabric import bound, fluid

__all__ = ["bound", "fluid"]


def when_compiling(say: Callable[[], None]) -> None:
    """Have `say` called when the fluid solver is not ready in two seconds from now: it is being compiled then, not loaded."""
    from clustersim.network import kernel

    def look() -> None:
        if not kernel.run.signatures:
            say()

    if not kernel.run.signatures:
        timer = threading.Timer(2.0, look)
        timer.daemon = True
        timer.start()
