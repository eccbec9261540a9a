"""The busiest link's end: the same by every way of sorting, and by the definition."""

import numpy as np
import pytest

from clustersim.network import bounds
from clustersim.types import Routes


def system(rng, n_flows, n_links, n_releases, *, by_source, alike=False):
    """Flows of one to four links, or (`alike`) all of two with weight 1, released in order or in none."""
    hops = np.full(n_flows, 2) if alike else rng.integers(1, 5, n_flows)
    links = np.concatenate([rng.choice(n_links, k, replace=False) for k in hops])
    weights = np.ones(links.size) if alike else rng.choice([1.0, 0.5], links.size)
    release = rng.choice(rng.exponential(1.0, n_releases), n_flows)
    return (
        rng.uniform(1, 10, n_links),
        Routes(
            start=np.concatenate(([0], np.cumsum(hops))), links=links, weights=weights, latency=np.zeros(n_flows),
        ),
        rng.uniform(0.1, 1, n_flows),
        np.sort(release)[::-1].copy() if by_source else release,
    )  # fmt: skip


def by_definition(capacity, routes, nbytes, release):
    """Over all releases r of a link's flows: r + (bytes of those released at r or later) / capacity."""
    ends = np.full(capacity.size, -np.inf)
    flow = np.repeat(np.arange(nbytes.size), np.diff(routes.start))
    for link in range(capacity.size):
        at = routes.links == link
        of, sizes = release[flow[at]], nbytes[flow[at]] * routes.weights[at]
        ends[link] = max((r + sizes[of >= r].sum() / capacity[link] for r in of), default=-np.inf)
    return ends


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("most", [4096, 8], ids=["few releases", "many"])
@pytest.mark.parametrize("n_releases", [1, 2, 30, 1000])
def test_the_end_of_every_link_is_the_greatest_of_what_is_left_at_each_release(n_releases, most, by_source, alike, monkeypatch):
    monkeypatch.setattr(bounds, "MOST", most)
    for seed in range(5):
        capacity, routes, *flows = system(np.random.default_rng(seed), 300, 12, n_releases, by_source=by_source, alike=alike)
        ends = bounds._ends_of_staggered(capacity, bounds.narrow(routes), *flows)
        np.testing.assert_allclose(ends, by_definition(capacity, routes, *flows), rtol=1e-12)
