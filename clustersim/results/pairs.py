"""Bytes that each GPU hands to each other one in a step: what no sum over links or GPUs can tell. Knows no time."""

from __future__ import annotations

import numpy as np
import polars as pl

from clustersim.network.fabric import Exchange


class PairBytes:
    """Adds up the transfers of all layers as they go by."""

    def __init__(self, n_gpus: int) -> None:
        self._dispatch, self._combine = np.zeros((n_gpus, n_gpus)), np.zeros((n_gpus, n_gpus))

    def watch(self, layer: int, dispatch: Exchange, combine: Exchange) -> None:
        """Take in a layer; as `engine.gpu.play` shows it."""
        for total, transfers in ((self._dispatch, dispatch.transfers), (self._combine, combine.transfers)):
            np.add.at(total.reshape(-1), transfers.src * len(total) + transfers.dst, transfers.nbytes)

    def table(self, step: int = 0) -> pl.DataFrame:
        """A row per pair of GPUs that something went between. What a GPU forwards counts for each of its hops."""
        src, dst = np.nonzero(self._dispatch + self._combine)
        return pl.DataFrame(
            {
                "step": np.full(src.size, step, np.uint32),
                "src": src.astype(np.uint32),
                "dst": dst.astype(np.uint32),
                "dispatch_bytes": self._dispatch[src, dst],
                "combine_bytes": self._combine[src, dst],
            }
        )
