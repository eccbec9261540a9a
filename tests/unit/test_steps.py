"""Flows that start together, in coarse steps: hand-derived cases, shares of a flow on several links, exact ends beside them."""

import numpy as np
import pytest

from clustersim import flow_times, load_cluster, transfer
from clustersim.network import drains, steps
from clustersim.network.bounds import link_bytes
from clustersim.types import Routes
from tests.matrices import skewed


def routes_of(ways, weights=None):
    start = np.concatenate(([0], np.cumsum([len(way) for way in ways])))
    links = np.concatenate(ways).astype(np.int64)
    return Routes(
        start=start, links=links, weights=np.ones(links.size) if weights is None else np.concatenate(weights),
        latency=np.zeros(len(ways)),
    )  # fmt: skip


def test_flows_of_one_link_end_exactly_however_coarse_the_step():
    """Flows of 1, 2, ... n bytes share a link of 1 byte/s evenly, so flow k ends after the sum over i of min(i, k)."""
    n = 20
    sizes = np.arange(1.0, n + 1)
    ends, count = steps.drain_times(np.ones(1), routes_of([[0]] * n), sizes, quantum=1e3, growth=2.5)
    np.testing.assert_allclose(ends, np.minimum(sizes[:, None], sizes).sum(axis=1), rtol=1e-12)
    assert count == pytest.approx(5, abs=4)


def test_a_flow_that_takes_half_of_itself_over_each_of_two_links_has_the_rate_of_both():
    ends, _ = steps.drain_times(np.array([3.0, 3.0]), routes_of([[0, 1]], [[0.5, 0.5]]), np.array([12.0]), 1e-3, 2.5)
    assert ends == pytest.approx([2.0])


@pytest.mark.parametrize("name", ["shortest", "spray", "ecmp"])
def test_the_error_is_of_the_size_of_the_resolution_under_every_policy(name):
    cluster = load_cluster(
        "ideal_rail", nodes=4, nic={"oversubscription": 2.0}, fabric={"name": "leaf_spine", "spines": 4}, routing={"name": name}
    )
    exact, coarse = (transfer(cluster, skewed(32), resolution=q) for q in (0.0, 0.01))
    sent = np.isfinite(exact.finish)
    assert coarse.makespan == pytest.approx(exact.makespan, rel=0.01)
    assert np.quantile(np.abs(coarse.finish - exact.finish)[sent], 0.99) <= 0.02 * exact.bound
    assert coarse.solves < exact.solves / 2


def test_flows_that_start_a_little_apart_are_the_kernels_and_end_where_these_do():
    system = [3.0, 2.0, 5.0], [[0, 1], [1, 2], [0, 2], [2], [1]] * 8, list(range(1, 41))
    together = flow_times(*system, 0.0, resolution=0.01)
    apart = flow_times(*system, np.linspace(0, 1e-9, 40), resolution=0.01)
    np.testing.assert_allclose(apart, together, atol=0.02 * together.max())


def test_a_link_named_twice_counts_twice():
    ways = [[0], [1], [1]], [[0, 0], [1], [1]]
    once, twice = (flow_times([2.0, 1.0], way, [6.0, 1.0, 3.0], 0.0, resolution=0.01) for way in ways)
    np.testing.assert_allclose(once, [3, 2, 4], rtol=1e-9)
    np.testing.assert_allclose(twice, [6, 2, 4], rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_no_link_is_through_before_it_could_be(seed):
    rng = np.random.default_rng(seed)
    routes = routes_of([rng.choice(12, rng.integers(1, 5), replace=False) for _ in range(300)])
    capacity, sizes = rng.uniform(1, 9, 12), rng.exponential(5.0, 300) + 1e-3
    ends, _ = steps.drain_times(capacity, routes, sizes, quantum=0.05 * sizes.sum() / 12, growth=0.1)
    last = np.zeros(12)
    np.maximum.at(last, routes.links, np.repeat(ends, np.diff(routes.start)))
    assert (last >= link_bytes(routes, sizes, 12) / capacity * (1 - 1e-9)).all()
    exact, _ = drains.drain_times(capacity, routes, sizes, np.zeros(300), 0.0, 0.0)
    assert np.abs(ends - exact).max() <= 0.1 * exact.max()
