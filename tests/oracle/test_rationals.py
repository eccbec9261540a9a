"""Small random systems with everything that the network offers at once, against an exact solver in rationals."""

import random

import numpy as np
import pytest

from clustersim import flow_times
from tests.reference import finish_times


def system(rng, *, weights, rate_cap, changes):
    """A few flows over a few links in small whole numbers, so that much happens at one instant."""
    n_links, n = rng.randint(1, 7), rng.randint(1, 14)
    routes = [rng.sample(range(n_links), rng.randint(1, min(n_links, 6))) for _ in range(n)]
    capacity = [rng.choice([1, 2, 10, rng.randint(1, 30)]) for _ in range(n_links)]
    asked = {
        "capacity": capacity,
        "routes": routes,
        "nbytes": [rng.choice([1, 2, 5, 10, rng.randint(1, 100)]) for _ in range(n)],
        "release": [rng.choice([0, 0, 0, rng.randint(0, 20)]) for _ in range(n)],
    }
    if weights:
        asked["weights"] = [[rng.choice([1, 0.5, 0.25, 0.125]) for _ in route] for route in routes]
    if rate_cap:
        asked["rate_cap"] = [rng.choice([float("inf"), rng.randint(1, 8), 0.5]) for _ in range(n)]
    if changes:
        late = [(rng.randint(0, 30), rng.randrange(n_links), rng.choice([0.5, 1, 3, 20])) for _ in range(rng.randint(1, 8))]
        asked["changes"] = sorted(late, key=lambda change: change[0])
    return asked


@pytest.mark.parametrize(
    "what",
    [{"rate_cap"}, {"changes"}, {"weights", "rate_cap"}, {"weights", "changes"}, {"weights", "rate_cap", "changes"}],
    ids=lambda what: "+".join(sorted(what)),
)
def test_200_random_systems(what):
    for seed in range(200):
        asked = system(random.Random(seed), **{key: key in what for key in ("weights", "rate_cap", "changes")})
        expected = [float(end) for end in finish_times(**asked)]
        np.testing.assert_allclose(flow_times(**asked), expected, rtol=1e-9, err_msg=f"seed {seed}")


def test_two_links_on_a_way_that_stop_at_different_times():
    asked = {"capacity": [1, 2], "routes": [[0, 1], [0, 1]], "nbytes": [54, 5], "release": [0, 0]}
    asked |= {"weights": [[1, 1], [0.5, 1]], "changes": [(7, 1, 0.0), (8, 0, 0.0), (14, 1, 2), (40, 0, 1)]}
    np.testing.assert_allclose(flow_times(**asked), [float(end) for end in finish_times(**asked)], rtol=1e-9)


def test_200_random_systems_whose_links_stop_and_go_on():
    """Capacity 0 for a while: what crosses the link waits."""
    for seed in range(200):
        rng = random.Random(seed)
        asked = system(rng, weights=True, rate_cap=True, changes=False)
        stops = [(rng.randint(0, 10), rng.randrange(len(asked["capacity"]))) for _ in range(3)]
        downs = [(at, link, 0.0) for at, link in stops]
        ups = [(at + rng.randint(1, 10), link, asked["capacity"][link]) for at, link in stops]
        ups += [(40, link, asked["capacity"][link]) for _, link in stops]
        asked["changes"] = sorted(downs + ups, key=lambda change: change[0])
        expected = [float(end) for end in finish_times(**asked)]
        np.testing.assert_allclose(flow_times(**asked), expected, rtol=1e-9, err_msg=f"seed {seed}")


def test_a_capacity_that_halves_half_way():
    """100 bytes at 10 B/s until 5 s, the other 50 at 5 B/s: 15 s. Back at 10 B/s from 7 s on: 10 by then, 40 more: 11 s."""
    assert flow_times([10], [[0]], [100], 0.0, changes=[(5, 0, 5)])[0] == pytest.approx(15, rel=1e-12)
    assert flow_times([10], [[0]], [100], 0.0, changes=[(5, 0, 5), (7, 0, 10)])[0] == pytest.approx(11, rel=1e-12)


def test_a_capped_flow_leaves_the_rest_to_the_other():
    """10 B/s, one of two flows at most 2: the other has 8. 16 bytes at 2 s; the capped one 2 B/s all along, 10 bytes at 5 s."""
    ends = flow_times([10], [[0], [0]], [10, 16], 0.0, rate_cap=[2, float("inf")])
    np.testing.assert_allclose(ends, [5, 2], rtol=1e-12)


def test_a_cap_above_what_the_links_give_changes_nothing():
    for seed in range(40):
        asked = system(random.Random(seed), weights=False, rate_cap=False, changes=False)
        loose = [max(asked["capacity"]) + 1.0] * len(asked["nbytes"])
        np.testing.assert_allclose(flow_times(**asked, rate_cap=loose), flow_times(**asked), rtol=1e-9, err_msg=f"seed {seed}")


def test_a_change_to_the_same_capacity_changes_nothing():
    for seed in range(40):
        asked = system(random.Random(seed), weights=False, rate_cap=False, changes=False)
        same = [(at / 2, link, c) for at in range(20) for link, c in enumerate(asked["capacity"])]
        np.testing.assert_allclose(flow_times(**asked, changes=same), flow_times(**asked), rtol=1e-9, err_msg=f"seed {seed}")
