"""All-to-alls in rounds: in each, every GPU sends to one other and receives from one other. No clock, no links."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from clustersim.exchange.alltoall import direct
from clustersim.exchange.copies import Gpus, TokenBytes
from clustersim.types import InputError, Ints, Placement, Routing, Transfers


def pairwise(
    phase: str, routing: Routing, placement: Placement, cluster: Gpus, model: TokenBytes, *, order: str = "nccl"
) -> Transfers:
    """The copies of `direct` in n - 1 rounds: in one with offset d, GPU r sends to r + d and receives from r - d.

    A GPU sends when what it receives in the round before is in; rounds in which it receives nothing are passed over. There is
    no barrier between GPUs.

    Args:
        order: of the offsets: "nccl" (`delta_order`) or "ring" (1, 2, 3, ...).

    Raises:
        InputError: another order.
    """
    if order not in ("nccl", "ring"):
        raise InputError(f"exchange.order={order}: must be nccl or ring")
    plain, n = direct(phase, routing, placement, cluster, model), cluster.n_gpus
    deltas = delta_order(n) if order == "nccl" else np.arange(n)
    turn = np.zeros(n, np.int64)
    turn[deltas] = np.arange(n)
    rounds = turn[(plain.dst - plain.src) % n]
    rows = np.argsort(rounds, kind="stable")
    last, parents, after = np.full(n, -1), np.zeros(plain.n, np.int64), []
    begin = 0
    for end in [*(np.flatnonzero(np.diff(rounds[rows])) + 1).tolist(), plain.n]:
        of_round = rows[begin:end]
        follows = last[plain.src[of_round]]
        parents[begin:end] = follows >= 0
        after.append(follows[follows >= 0])
        last[plain.dst[of_round]] = np.arange(begin, end)
        begin = end
    return replace(
        plain, src=plain.src[rows], dst=plain.dst[rows], nbytes=plain.nbytes[rows], release=plain.release[rows],
        chunk=plain.nbytes[rows], after_start=np.concatenate(([0], np.cumsum(parents))).astype(np.int64),
        after=np.concatenate([*after, np.zeros(0, np.int64)]).astype(np.int64),
    )  # fmt: skip


def delta_order(n: int) -> Ints:
    """Offsets in the order in which NCCL schedules sends and receives, from 0: triangular numbers modulo a power of two.

    Source: github:NVIDIA/nccl src/init.cc, ncclP2pSchedule.
    """
    size = 1 << max(0, math.ceil(math.log2(max(1, n))))
    steps = np.cumsum(np.arange(size)) % size
    return steps[steps < n]
