"""The busiest link's end: the same by every way of sorting, and by the definition."""

import numpy as np
import pytest

from clustersim.network import bounds
from clustersim.types import Routes


def system(rng, n_flows, n_links, n_releases, *, by_source):
    """Flows of one to four links, released at few or many times, in the order of their releases or in none."""
    hops = rng.integers(1, 5, n_flows)
    links = np.concatenate([rng.choice(n_links, k, replace=False) for k in hops])
    release = rng.choice(rng.exponential(1.0, n_releases), n_flows)
    return (
        rng.uniform(1, 10, n_links),
        Routes(
            start=np.concatenate(([0], np.cumsum(hops))), links=links, weights=rng.choice([1.0, 0.5], links.size),
            latency=np.zeros(n_flows),
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


@pytest.mark.parametrize("by_source", [False, True])
@pytest.mark.parametrize("most", [4096, 8], ids=["sorted by link", "sorted by release"])
@pytest.mark.parametrize("n_releases", [1, 2, 30, 1000])
def test_the_end_of_every_link_is_the_greatest_of_what_is_left_at_each_release(n_releases, most, by_source, monkeypatch):
    monkeypatch.setattr(bounds, "MOST", most)
    for seed in range(5):
        found = system(np.random.default_rng(seed), 300, 12, n_releases, by_source=by_source)
        np.testing.assert_allclose(bounds._ends_of_staggered(*found), by_definition(*found), rtol=1e-12)
