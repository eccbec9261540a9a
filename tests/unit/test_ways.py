"""Shortest ways, counted and walked in bulk, against networkx looking for them one pair at a time."""

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim.types import InputError
from clustersim.ways import shortest_ways
from clustersim.wiring import add_link, add_port, empty_graph, gpu_in, gpu_out, number


@st.composite
def machines(draw):
    """A few GPUs and switches; any ports, links between switches of 1 to 3 hops, wires from GPU to GPU."""
    n_gpus, n_switches = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    switches = [f"s {i}" for i in range(n_switches)]
    graph = empty_graph(n_gpus)
    for a, b in draw(st.sets(st.tuples(st.integers(0, n_gpus - 1), st.integers(0, n_switches - 1)), max_size=10)):
        add_port(graph, a, switches[b], "nic", f"{a}>{b}", 1.0, 0.0)
    for a, b in draw(st.sets(st.tuples(st.integers(0, n_switches - 1), st.integers(0, n_switches - 1)), max_size=18)):
        if a != b:
            add_link(graph, switches[a], switches[b], "trunk", f"{a}>{b}", 1.0, 0.0, hops=draw(st.integers(1, 3)))
    for a, b in draw(st.sets(st.tuples(st.integers(0, n_gpus - 1), st.integers(0, n_gpus - 1)), max_size=3)):
        if a != b:
            add_link(graph, gpu_out(a), gpu_in(b), "wire", f"{a}>{b}", 1.0, 0.0)
    number(graph)
    return graph, n_gpus


def found_by_networkx(graph, a, b):
    """All shortest ways as tuples of links."""
    try:
        paths = list(nx.all_shortest_paths(graph, gpu_out(a), gpu_in(b), weight="hops"))
    except nx.NetworkXNoPath:
        return []
    return [tuple(graph[x][y]["link"] for x, y in pairwise(path)) for path in paths]


def rows_of(ragged):
    ends = np.cumsum(ragged.length)[:-1]
    return [tuple(row.tolist()) for row in np.split(ragged.links, ends)], np.split(ragged.shares, ends)


@settings(max_examples=150, deadline=None)
@given(machines())
def test_every_shortest_way_is_counted_and_found_once_and_no_other(machine):
    graph, n = machine
    ways = shortest_ways(graph, n, range(graph.number_of_edges()))
    for a in range(n):
        for b in range(n):
            expected = found_by_networkx(graph, a, b)
            pair = np.array([a]), np.array([b])
            assert ways.reaches(*pair).tolist() == [bool(expected)]
            if expected:
                assert ways.number(*pair).tolist() == [len(expected)]
                every = np.full(len(expected), a), np.full(len(expected), b)
                rows, _ = rows_of(ways.take(*every, np.arange(len(expected))))
                assert sorted(rows) == sorted(expected)


@settings(max_examples=100, deadline=None)
@given(machines())
def test_an_even_spread_puts_on_each_link_the_share_of_the_ways_that_use_it(machine):
    graph, n = machine
    ways = shortest_ways(graph, n, range(graph.number_of_edges()))
    pairs = [(a, b) for a in range(n) for b in range(n) if found_by_networkx(graph, a, b)]
    if not pairs:
        return
    src, dst = np.array(pairs).T
    links, shares = rows_of(ways.share(src, dst))
    for i, (a, b) in enumerate(pairs):
        expected = found_by_networkx(graph, a, b)
        use = {link: sum(link in way for way in expected) / len(expected) for way in expected for link in way}
        assert dict(zip(links[i], shares[i].tolist(), strict=True)) == pytest.approx(use)


def test_rows_of_many_pairs_are_the_rows_of_each():
    rng = np.random.default_rng(3)
    graph = empty_graph(12)
    for g in range(12):
        add_port(graph, g, f"low {g // 3}", "nic", g, 1.0, 0.0)
    for low in range(4):
        for high in range(3):
            for a, b in ((f"low {low}", f"high {high}"), (f"high {high}", f"low {low}")):
                add_link(graph, a, b, "trunk", f"{a}>{b}", 1.0, 0.0)
    number(graph)
    ways = shortest_ways(graph, 12, range(graph.number_of_edges()))
    src, dst = rng.integers(0, 12, 200), rng.integers(0, 12, 200)
    src, dst = src[src != dst], dst[src != dst]
    rank = rng.integers(0, 1 << 30, src.size) % ways.number(src, dst)
    many, _ = rows_of(ways.take(src, dst, rank))
    assert set(ways.number(src, dst)) == {1, 3}
    for i in range(src.size):
        (one,), _ = rows_of(ways.take(src[i : i + 1], dst[i : i + 1], rank[i : i + 1]))
        assert one == many[i]


def test_links_that_are_not_among_those_asked_for_are_not_used():
    graph = empty_graph(2)
    for g in range(2):
        add_port(graph, g, "a 0", "nvlink", g, 1.0, 0.0)
        add_port(graph, g, "b 0", "nic", g, 1.0, 0.0)
    number(graph)
    of = {data["name"]: data["link"] for *_, data in graph.edges(data=True)}
    ways = shortest_ways(graph, 2, {of[name] for name in of if name.startswith("nic")})
    assert ways.links.tolist() == sorted(of[name] for name in of if name.startswith("nic"))
    assert ways.take(np.array([0]), np.array([1]), np.array([0])).links.tolist() == [of["nic_up 0"], of["nic_down 1"]]
    none = shortest_ways(graph, 2, set())
    assert not none.reaches(np.array([0]), np.array([1])).any()


def test_too_many_ways_are_refused_before_their_number_overflows():
    """40 steps with 2 ways each are 2^40 ways."""
    graph = empty_graph(2)
    add_port(graph, 0, "s 0", "nic", 0, 1.0, 0.0)
    add_port(graph, 1, "s 40", "nic", 1, 1.0, 0.0)
    for i in range(40):
        for side in "ab":
            add_link(graph, f"s {i}", f"{side} {i}", "up", f"{i}{side}", 1.0, 0.0)
            add_link(graph, f"{side} {i}", f"s {i + 1}", "down", f"{i}{side}", 1.0, 0.0)
    number(graph)
    with pytest.raises(InputError, match=r"more than 2\^32 shortest ways"):
        shortest_ways(graph, 2, range(graph.number_of_edges()))


def test_a_second_link_between_the_same_two_and_rates_that_are_none_are_refused():
    graph = empty_graph(1)
    add_link(graph, "a 0", "b 0", "trunk", 0, 1.0, 0.0)
    with pytest.raises(InputError, match="trunk 0 and trunk 1 join the same two"):
        add_link(graph, "a 0", "b 0", "trunk", 1, 1.0, 0.0)
    for rate in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="above 0 and finite"):
            add_link(graph, "b 0", "a 0", "trunk", 2, rate, 0.0)
