"""Laws of the network on the event loop, seen by a process that looks at it at odd times while exchanges are in progress."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import simpy

from clustersim import load_cluster
from clustersim.exchange import node_dedup
from clustersim.network import exact_records, fluid, sharing
from clustersim.types import Placement, Routing, independent

RAIL = load_cluster("ideal_rail", nodes=3, gpus_per_node=4)
SPINE = load_cluster("ideal_rail", nodes=3, gpus_per_node=4, nic={"oversubscription": 2.0, "rails": False})
H100 = load_cluster("h100_sxm", nodes=3, gpus_per_node=4)


@dataclass
class Seen:
    """What the onlooker wrote down."""

    time: list[float] = field(default_factory=list)
    load: list[np.ndarray] = field(default_factory=list)        # [links] bytes/s
    live: list[int] = field(default_factory=list)
    idle: list[int] = field(default_factory=list)               # live flows that neither a full link nor another flow holds


def look(net, seen):
    state = net._state
    flows, hops = state.flows, state.hops
    live = flows["status"] == exact_records.LIVE
    of = np.repeat(np.arange(flows.size), flows["hop_end"] - flows["hop_start"])
    rate = sharing.rates(state)
    load = np.bincount(hops["link"], rate[of] * hops["weight"], net.capacity.size)
    full = load >= net.capacity * (1 - 1e-9)
    held = flows["hold"] >= 0
    crosses = np.bincount(of, full[hops["link"]], flows.size) > 0
    seen.time.append(net.env.now)
    seen.load.append(load)
    seen.live.append(int(live.sum()))
    seen.idle.append(int((live & ~crosses & ~held).sum()))


def played(cluster, sent, entries, looks):
    """Play exchanges [(transfers)] that GPUs enter at entries [exchanges, gpus]; look at the network `looks` times."""
    env = simpy.Environment()
    net, seen = fluid(env, cluster), Seen()
    opened = [net.exchange(transfers) for transfers in sent]
    heard = np.full((2, *entries.shape), np.nan)

    def gpu(i, me):
        yield env.timeout(entries[i, me])
        yield opened[i].enter(me)
        heard[0, i, me] = env.now
        yield opened[i].done[me]
        heard[1, i, me] = env.now

    def onlooker():
        for _ in range(looks):
            yield env.timeout(entries.max() / looks * 1.3)
            look(net, seen)

    for i in range(len(sent)):
        for me in range(cluster.n_gpus):
            env.process(gpu(i, me))
    env.process(onlooker())
    env.run()
    return opened, heard, seen


def all_pairs(rng, n):
    nbytes = rng.integers(1, 1 << 22, (n, n)) * ~np.eye(n, dtype=bool)
    src, dst = np.nonzero(nbytes)
    return independent(src, dst, nbytes[src, dst].astype(float))


def two_hops(rng, cluster, phase):
    """Tokens to experts on all GPUs by way of forwarders: what follows what, chunk by chunk."""
    n, tokens = cluster.n_gpus, 128
    ids = np.argsort(rng.random((n * tokens, 2 * n)) ** rng.random(2 * n), axis=1)[:, :4]
    routing = Routing(
        asked=ids, assigned=ids, weights=None, source=np.repeat(np.arange(n), tokens), index=np.tile(np.arange(tokens), n),
        capacity=None,
    )  # fmt: skip
    placement = Placement(gpu_of=np.arange(2 * n) // 2, expert_of=np.arange(2 * n))

    class Sizes:
        top_k, dispatch_token_bytes, combine_token_bytes = 4, 7392.0, 14336.0

    return node_dedup(phase, routing, placement, cluster, Sizes)


CASES = [
    pytest.param(cluster, kind, seed, id=f"{name}-{kind}-{seed}")
    for name, cluster in (("rail", RAIL), ("spine", SPINE), ("h100", H100)) for kind in ("direct", "two hops") for seed in (0, 1)
]  # fmt: skip


@pytest.fixture(scope="module")
def play():
    done = {}

    def once(cluster, kind, seed):
        key = (cluster.name, cluster.n_gpus, len(cluster.links), kind, seed)
        if key not in done:
            rng = np.random.default_rng(seed)
            sent = [
                all_pairs(rng, cluster.n_gpus) if kind == "direct" else two_hops(rng, cluster, ("dispatch", "combine")[i % 2])
                for i in range(3)
            ]
            entries = np.cumsum(rng.exponential(2e-4, (3, cluster.n_gpus)), axis=0)
            done[key] = played(cluster, sent, entries, looks=101)
        return done[key]

    return once


@pytest.mark.parametrize(("cluster", "kind", "seed"), CASES)
def test_laws_11_and_12_bytes_move_no_faster_than_links_allow_and_all_arrive(cluster, kind, seed, play):
    opened, _, seen = play(cluster, kind, seed)
    assert max(seen.live) >= 15, "there was something to see"
    for load in seen.load:
        assert (load <= cluster.capacity * (1 + 1e-9)).all()
    for exchange in opened:
        np.testing.assert_allclose(
            exchange.link_bytes().sum(), (exchange.transfers.nbytes * np.diff(exchange.routes.start)).sum(), rtol=1e-12
        )
        assert np.isfinite(exchange.finish).all()


@pytest.mark.parametrize(("cluster", "kind", "seed"), CASES)
def test_law_16_every_live_flow_crosses_a_full_link_or_keeps_pace_with_what_it_follows(cluster, kind, seed, play):
    _, _, seen = play(cluster, kind, seed)
    assert seen.idle == [0] * len(seen.idle)


@pytest.mark.parametrize(("cluster", "kind", "seed"), CASES)
def test_law_13_nothing_comes_before_its_cause(cluster, kind, seed, play):
    opened, heard, _ = play(cluster, kind, seed)
    for i, exchange in enumerate(opened):
        t, routes = exchange.transfers, exchange.routes
        entered, (arrived, done) = exchange.entered, heard[:, i]
        assert (exchange.start >= (entered[t.src] + t.release) * (1 - 1e-12)).all(), "started before its source was in"
        slowest = np.minimum.reduceat(cluster.capacity[routes.links], routes.start[:-1])
        assert (exchange.finish >= exchange.start + (t.nbytes / slowest + routes.latency) * (1 - 1e-9)).all()
        child = np.repeat(np.arange(t.n), np.diff(t.after_start))
        assert (exchange.finish[child] > exchange.start[t.after]).all()
        assert (exchange.start[child] > exchange.start[t.after]).all(), "forwarded before there was anything"
        assert (exchange.finish[child] > exchange.finish[t.after]).all(), "forwarded before it had come"
        inbound = entered.copy()
        np.maximum.at(inbound, t.dst, exchange.finish)
        np.testing.assert_allclose(arrived, inbound, rtol=1e-12)
        assert (done >= arrived).all()


@pytest.mark.parametrize(("cluster", "kind", "seed"), CASES)
def test_law_27_what_is_live_at_any_time_is_what_has_begun_and_not_ended(cluster, kind, seed, play):
    """The number of live flows, seen from outside, against the starts and ends that the exchanges tell afterwards; their
    integral is then the sum of the flows' times."""
    opened, _, seen = play(cluster, kind, seed)
    own = [exchange.routes.latency for exchange in opened]
    start = np.concatenate([exchange.start for exchange in opened])
    drain = np.concatenate([exchange.finish - latency for exchange, latency in zip(opened, own, strict=True)])
    for time, live in zip(seen.time, seen.live, strict=True):
        assert live == ((start <= time) & (drain > time)).sum()
    instants = np.unique(np.concatenate((start, drain)))
    alive = (start[:, None] <= instants[:-1]) & (drain[:, None] > instants[:-1])
    np.testing.assert_allclose((alive.sum(axis=0) * np.diff(instants)).sum(), (drain - start).sum(), rtol=1e-9)
