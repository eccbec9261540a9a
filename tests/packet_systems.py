"""Flows over any links, put to the packet network; small random ones. Shares no code with the kernel."""

from __future__ import annotations

import numpy as np

from clustersim.network import packets
from clustersim.network.changes import Changes
from clustersim.types import Routes, Transfers


def waiting(
    capacity, routes, nbytes, *, chunk, queue="round_robin", latency=0.0, after=None, piece=None, weights=None, n_wires=None,
    changes=(),
):  # fmt: skip
    """A state with these flows, none released. Each has counters of its own for its last landing and its last leaving.

    Args:
        weights: as `routes`; None: all are 1.
        n_wires: of the links; the others are lanes. None: all.
        changes: (seconds, link, bytes/s) from then on.
    """
    caps = np.asarray(capacity, float)
    after = after or [[] for _ in routes]
    zero, n = np.zeros(len(routes), np.int64), len(routes)
    rows = Routes(
        start=np.cumsum([0, *map(len, routes)]), links=np.array([x for route in routes for x in route], np.int64),
        weights=np.ones(sum(map(len, routes))) if weights is None else np.array([w for row in weights for w in row], float),
        latency=np.zeros(n),
    )  # fmt: skip
    transfers = Transfers(
        src=zero, dst=zero, nbytes=np.asarray(nbytes, float), release=np.zeros(n),
        chunk=np.asarray(nbytes if piece is None else piece, float), after_start=np.cumsum([0, *map(len, after)]),
        after=np.array([p for row in after for p in row], np.int64),
    )  # fmt: skip
    to_come = None
    if len(changes):
        time, link, then = (np.array(column) for column in zip(*sorted(changes), strict=True))
        to_come = Changes(time=time.astype(float), link=link, capacity=then.astype(float))
    state = packets.empty(caps, np.broadcast_to(np.asarray(latency, float), caps.shape), chunk, queue, n_wires, to_come)
    own = np.arange(n)
    return packets.extend(state, rows, transfers, inbox=own, outbox=n + own, n_counters=2 * n)


def played(capacity, routes, nbytes, release=0.0, **options):
    """The state after the last packet has landed."""
    state = waiting(capacity, routes, nbytes, **options)
    packets.play_all(state, np.broadcast_to(np.asarray(release, float), (len(routes),)).copy())
    return state


def ends(*args, **options):
    """When the last packet of each flow has landed."""
    return packets.finish(played(*args, **options))


def run_until(state, now):
    """Play all events up to `now`."""
    while packets.run(state, now) <= now:
        packets.take_ended(state)


def steady_rates(capacity, routes, *, rounds, settle=200, **options):
    """Bytes/s of every flow while all have more to send than they can: counted from `settle` on, for `rounds` packet times.

    Times are in packets of the slowest link shared by all flows: after that long each flow has sent so many packets at least.
    """
    step = options["chunk"] * len(routes) / min(capacity)
    least = min((weight for row in options.get("weights") or [[1]] for weight in row), default=1)
    most = options["chunk"] + max(capacity) / least * step * (settle + rounds)
    state = waiting(capacity, routes, [most] * len(routes), **options)
    packets.enter(state, np.arange(len(routes)), np.zeros(len(routes)))
    run_until(state, settle * step)
    before = state.flows["landed"].copy()
    run_until(state, (settle + rounds) * step)
    return (state.flows["landed"] - before) * options["chunk"] / (rounds * step)


def small_system(rng, *, most_flows=14, forward=False):
    """A few flows over a few links, routes of one to six; `forward`: each in rising order, so that none goes in a circle."""
    n_links, n_flows = rng.randint(2, 7), rng.randint(2, most_flows)
    routes = [rng.sample(range(n_links), rng.randint(1, min(n_links, 6))) for _ in range(n_flows)]
    return {
        "capacity": [rng.choice([1, 2, 10, rng.randint(1, 30)]) for _ in range(n_links)],
        "routes": [sorted(route) if forward else route for route in routes],
        "nbytes": [rng.choice([1, 2, 5, 10, rng.randint(1, 100)]) * 1024 for _ in range(n_flows)],
        "release": [rng.choice([0, 0, 0, rng.randint(0, 20)]) * 1024 for _ in range(n_flows)],
    }


def weighted(rng, system):
    """The same system with weights from a quarter to three on every hop, one in three of them 1."""
    return system | {"weights": [[rng.choice([1, 1, 0.25, 0.5, 2, 3]) for _ in route] for route in system["routes"]]}
