"""Routes of a run's exchanges, laid out once for pairs of GPUs that come again. No clock; what flows over them is not here."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clustersim.cluster import Cluster
from clustersim.lanes import routes_of
from clustersim.network.bounds import Narrow, narrow
from clustersim.types import Ints, Lanes, Routes, Transfers

MOST_HOPS = 4_000_000       # kept in all, 30 bytes each: dispatch and combine of 2,048 GPUs over two links have half of it
LOOKED_AT = 64              # pairs of an exchange by which one that may be the same is found


@dataclass(frozen=True, eq=False, kw_only=True)
class Laid:
    """Where the transfers of an exchange go."""

    transfers: Transfers
    routes: Routes              # latency of each transfer's own way

    @cached_property
    def narrow(self) -> Narrow:
        return narrow(self.routes)

    @cached_property
    def _by_source(self) -> tuple[Ints, list[int]]:
        """Transfers sorted by source [transfers], and where those of each source begin [gpus that send + 1]."""
        src = self.transfers.src
        order = np.argsort(src, kind="stable")
        return order, np.searchsorted(src[order], np.arange(int(src.max(initial=-1)) + 2)).tolist()

    def sent_by(self, gpu: int) -> Ints:
        """The transfers of one source, in rising order."""
        rows, first = self._by_source
        return rows[first[gpu] : first[gpu + 1]] if gpu + 1 < len(first) else rows[:0]

    def fits(self, transfers: Transfers) -> bool:
        """Whether these transfers take the same ways."""
        mine = self.transfers
        if mine is transfers:
            return True
        same = np.array_equal(mine.src, transfers.src) and np.array_equal(mine.dst, transfers.dst)
        return same and _nics_alike(mine.by_nic, transfers.by_nic) and _lanes_alike(mine.lanes, transfers.lanes)


@dataclass(eq=False)
class KnownRoutes:
    """The routes of one machine that have been asked for lately. Layers mostly send between the same pairs."""

    cluster: Cluster
    laid: dict[tuple[int, bytes, bytes], Laid] = field(default_factory=dict)        # the latest last
    hops: int = 0

    def of(self, transfers: Transfers) -> Laid:
        """Raises InputError for a pair without a way."""
        if transfers.ways is not None:
            return Laid(transfers=transfers, routes=transfers.ways)
        step = max(1, transfers.n // LOOKED_AT)
        look = (transfers.n, transfers.src[::step].tobytes(), transfers.dst[::step].tobytes())
        found = self.laid.pop(look, None)
        if found is not None:
            self.hops -= found.routes.links.size
        if found is None or not found.fits(transfers):
            found = Laid(transfers=transfers, routes=routes_of(self.cluster, transfers))
        if found.routes.links.size <= MOST_HOPS:
            self.laid[look] = found
            self.hops += found.routes.links.size
            while self.hops > MOST_HOPS:
                self.hops -= self.laid.pop(next(iter(self.laid))).routes.links.size
        return found


def _nics_alike(a: NDArray[np.bool_] | None, b: NDArray[np.bool_] | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _lanes_alike(a: Lanes | None, b: Lanes | None) -> bool:
    if a is None or b is None:
        return a is b
    pairs: tuple[tuple[Ints, Ints], ...] = ((a.start, b.start), (a.lanes, b.lanes))
    return all(np.array_equal(one, other) for one, other in pairs) and np.array_equal(a.weights, b.weights)
