"""How long transfers take: links shared by flows, on the event loop or alone.

A network is `name(env, cluster, *, options)`; what it returns opens exchanges (`.exchange(transfers)`), which GPUs enter.
"""

from clustersim.network.fabric import bound, fluid

__all__ = ["bound", "fluid"]


def is_compiled() -> bool:
    """Whether the fluid solver's machine code is on disk already."""
    from clustersim.network import jit, kernel

    return jit.is_compiled(kernel.run)
