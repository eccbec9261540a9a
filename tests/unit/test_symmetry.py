"""Flows that cannot be told apart are solved as one: when that is tried, and that it changes nothing."""

import numpy as np

from clustersim import load_cluster
from clustersim.network import symmetry
from clustersim.network.freeform import flow_times
from clustersim.types import Routes
from tests.reference import fast


def routes_of(pairs):
    start = 2 * np.arange(len(pairs) + 1)
    links = np.array(pairs, np.int64).ravel()
    return Routes(start=start, links=links, weights=np.ones(links.size), latency=np.zeros(len(pairs)))


def test_an_all_to_all_of_equal_bytes_has_two_kinds_of_flows():
    """Those inside a node and those between nodes; their ports up and down are told apart by capacity alone."""
    cluster = load_cluster("ideal_rail", nodes=4)
    src, dst = np.nonzero(~np.eye(32, dtype=bool))
    found = symmetry.one_of_each(cluster.capacity, cluster.routes(src, dst), np.full(src.size, 1e6), np.zeros(src.size))
    kind, example, capacity, small = found
    assert example.size == 2
    np.testing.assert_array_equal(kind == kind[0], src // 8 == dst // 8)
    assert sorted(capacity) == [50e9, 450e9]
    assert sorted(small.weights) == [7, 24], "a port has 7 flows to its node and 24 to the others"


def test_flows_of_many_sizes_are_solved_as_they_are():
    cluster = load_cluster("ideal_rail", nodes=4)
    src, dst = np.nonzero(~np.eye(32, dtype=bool))
    nbytes = np.random.default_rng(0).random(src.size)
    assert symmetry.one_of_each(cluster.capacity, cluster.routes(src, dst), nbytes, np.zeros(src.size)) is None


def test_kinds_are_told_apart_by_what_is_far_away():
    """A ring of 64 links and flows over two neighbours each, all alike but for one link at half the capacity. Every flow's time
    depends on how far it is from that link, so there are as many kinds as distances, too many to gain: solved as it is."""
    n = 64
    pairs = [(i, (i + 1) % n) for i in range(n)]
    capacity = np.ones(n)
    assert symmetry.one_of_each(capacity, routes_of(pairs), np.ones(n), np.zeros(n)) is not None
    capacity[0] = 0.5
    assert symmetry.one_of_each(capacity, routes_of(pairs), np.ones(n), np.zeros(n)) is None


def test_classes_give_the_times_that_the_whole_system_gives():
    """30 systems of 4 kinds of sources and of links, copied 16 times, with what is released later copied too."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        n_links, n_flows, copies = 6, 12, 16
        capacity = np.tile(rng.integers(1, 10, n_links).astype(float), copies)
        one = [rng.choice(n_links, rng.integers(1, 4), replace=False) for _ in range(n_flows)]
        routes = [(route + n_links * copy).tolist() for copy in range(copies) for route in one]
        nbytes = np.tile(rng.integers(1, 20, n_flows).astype(float), copies)
        release = np.tile(rng.integers(0, 3, n_flows).astype(float), copies)
        whole = fast(capacity, routes, nbytes, release).flows["drain"]
        np.testing.assert_allclose(flow_times(capacity, routes, nbytes, release), whole, rtol=1e-12, err_msg=f"seed {seed}")
