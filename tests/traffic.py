"""Transfers as a matrix, for tests that count bytes between GPUs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clustersim.types import Floats, Transfers


def traffic_matrix(transfers: Transfers, n_gpus: int, chosen: NDArray[np.bool_] | None = None) -> Floats:
    """Bytes on the wire, float [from, to], over all hops; over those `chosen` (bool [transfers]) when given."""
    rows = slice(None) if chosen is None else chosen
    key = transfers.src[rows] * n_gpus + transfers.dst[rows]
    nbytes: Floats = np.bincount(key, weights=transfers.nbytes[rows], minlength=n_gpus * n_gpus).astype(np.float64)
    return nbytes.reshape(n_gpus, n_gpus)
