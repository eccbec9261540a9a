"""The exchanges of a forward pass on the event loop, every GPU a process: seconds and events, without making the transfers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from clustersim.cluster import Cluster
from clustersim.engine.exchanged import account
from clustersim.network.fabric import Bound, Exchange, Fluid
from clustersim.types import Floats, Transfers


@dataclass(frozen=True)
class Forward:
    """What it took."""

    seconds: float              # CPU, network and event loop
    account_s: float            # CPU, summing up each exchange when its last GPU has left
    step_s: float               # simulated
    events: float               # of the loop, per GPU and exchange, without those of the GPUs themselves
    solves: int


def forward(
    cluster: Cluster, network: Callable[..., Fluid | Bound], sent: Sequence[Transfers], jitter: Floats, *, accounts: bool = True
) -> Forward:
    """Every GPU computes for jitter[i, gpu] seconds, enters exchange i, waits for its bytes both ways, and so on.

    Args:
        sent: what travels in each exchange; the same transfers may stand there many times.
        jitter: seconds [exchanges, gpus].
    """
    env = simpy.Environment()
    net, n = network(env, cluster), cluster.n_gpus
    opened: dict[int, Exchange] = {}
    inside = [n] * len(sent)
    resumed = np.zeros(jitter.shape)
    account_s = 0.0

    delays = jitter.T.tolist()          # the loop compares times all the time, and NumPy's scalars are slow at that

    def gpu(me: int) -> Generator[simpy.Event, Any, None]:
        nonlocal account_s
        for i, transfers in enumerate(sent):
            yield env.timeout(delays[me][i])
            if i not in opened:
                opened[i] = net.exchange(transfers)
            exchange = opened[i]
            yield exchange.enter(me)
            resumed[i, me] = env.now
            if not exchange.done[me].processed:
                yield exchange.done[me]
            inside[i] -= 1
            if inside[i] == 0:
                del opened[i]
                began = time.process_time()
                if accounts:
                    account(exchange, resumed[i])
                account_s += time.process_time() - began

    for me in range(n):
        env.process(gpu(me))
    began, events = time.process_time(), 0
    while env.peek() < np.inf:
        env.step()
        events += 1
    own = 2 * n + n * len(sent)         # start and end of each process; its timeouts
    return Forward(
        seconds=time.process_time() - began - account_s, account_s=account_s, step_s=env.now,
        events=(events - own) / (n * len(sent)), solves=net.solves,
    )  # fmt: skip
