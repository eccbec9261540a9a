"""Routes that are kept during a run: found for the same pairs, never for others, and only so many."""

import numpy as np
import pytest
import simpy

from clustersim import load_cluster
from clustersim.lanes import equip, lanes_from, routes_of
from clustersim.network import bound, fluid, known_routes
from clustersim.network.bounds import narrow
from clustersim.types import Transfers, independent

CLUSTER = load_cluster("h100_2to1", nodes=3)


def some(seed, n=300, **more):
    rng = np.random.default_rng(seed)
    src = rng.integers(0, 24, n)
    made = independent(src, (src + rng.integers(1, 24, n)) % 24, rng.uniform(1, 1e6, n))
    fields = {name: getattr(made, name) for name in Transfers.__dataclass_fields__} | more
    return Transfers(**fields)


def same(laid, transfers, cluster=CLUSTER):
    want = routes_of(cluster, transfers)
    every = ("start", "links", "weights", "latency")
    return all(np.array_equal(getattr(laid.routes, name), getattr(want, name)) for name in every)


def test_the_same_pairs_with_other_bytes_take_the_routes_that_are_there():
    book = known_routes.KnownRoutes(CLUSTER)
    first = some(0)
    again = some(0, nbytes=first.nbytes * 2, src=first.src.copy(), dst=first.dst.copy())
    assert book.of(again) is book.of(first)
    assert same(book.of(first), again)


def test_pairs_that_look_alike_where_it_is_looked_first_are_told_apart():
    """Of 300 transfers every fourth is looked at first; the second differs."""
    book, one = known_routes.KnownRoutes(CLUSTER), some(1)
    dst = one.dst.copy()
    dst[1] = (one.src[1] + (one.dst[1] - one.src[1]) % 23 + 1) % 24
    other = some(1, dst=dst)
    for transfers in (one, other, one):
        assert same(book.of(transfers), transfers)
    assert len(book.laid) == 1, "the later takes the place of the earlier"
    assert book.hops == book.of(one).routes.links.size


def test_transfers_by_nic_and_those_with_lanes_have_routes_of_their_own():
    machine = equip(CLUSTER, {"copy": 1e11})
    book, plain = known_routes.KnownRoutes(machine), some(2)
    by_nic = some(2, by_nic=np.arange(300) % 2 == 0)
    lanes = [lanes_from((0, plain.src, weight), n_gpus=24) for weight in (np.full(300, 0.5), np.full(300, 0.25))]
    every = [plain, by_nic, *(some(2, lanes=each) for each in lanes)]
    for transfers in every * 2:
        assert same(book.of(transfers), transfers, machine)


def test_the_oldest_go_when_there_is_no_more_room(monkeypatch):
    book = known_routes.KnownRoutes(CLUSTER)
    sizes = [book.of(some(seed)).routes.links.size for seed in range(3)]
    monkeypatch.setattr(known_routes, "MOST_HOPS", sum(sizes[1:]) + sizes[0] // 2)
    book.of(some(1))
    book.of(some(3, n=10))
    assert book.hops == sum(laid.routes.links.size for laid in book.laid.values()) <= known_routes.MOST_HOPS
    assert len(book.laid) == 3, "the first one is gone"
    monkeypatch.setattr(known_routes, "MOST_HOPS", 10)
    assert same(book.of(some(4)), some(4))
    assert len(book.laid) == 3, "what is larger than all the room is not kept"


@pytest.mark.parametrize("routing", ["shortest", "spray"])
def test_narrow_routes_are_the_same_routes(routing):
    """Routes of one length need no beginnings, and weights that are 1 need not be said."""
    cluster = load_cluster("h100_2to1", nodes=3, routing={"name": routing})
    for src, dst in (([0, 1], [8, 9]), ([0, 1], [8, 2])):
        routes = cluster.routes(np.array(src), np.array(dst))
        slim = narrow(routes)
        assert slim.links.tolist() == routes.links.tolist()
        assert (slim.width == 0) == (len(set(np.diff(routes.start))) > 1)
        start = np.arange(3) * slim.width if slim.width else slim.start
        assert start.tolist() == routes.start.tolist()
        assert (slim.weights if slim.weights.size else np.ones(slim.links.size)).tolist() == routes.weights.tolist()


@pytest.mark.parametrize("network", [bound, fluid])
def test_a_run_whose_layers_send_alike_lays_routes_once(network, monkeypatch):
    laid = []
    monkeypatch.setattr(known_routes, "routes_of", lambda *args: laid.append(args) or routes_of(*args))
    env = simpy.Environment()
    net = network(env, CLUSTER)
    for factor in (1.0, 2.0, 3.0):
        one = some(5)
        exchange = net.exchange(some(5, nbytes=one.nbytes * factor))
        for gpu in range(24):
            exchange.enter(gpu)
        env.run()
        assert np.isfinite(exchange.finish).all()
    assert len(laid) == 1
