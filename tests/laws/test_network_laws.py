"""Laws of shared links where flows have weights and rate caps and links change under them, through `flow_times` alone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import flow_times

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def systems(draw, changes=True, release=True):
    """Flows with weights and caps over a few links, in integers."""
    n_links, n = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    routes = [draw(st.lists(st.integers(0, n_links - 1), min_size=1, max_size=4, unique=True)) for _ in range(n)]
    capacities = st.integers(1, 20)
    asked = {
        "capacity": draw(st.lists(capacities, min_size=n_links, max_size=n_links)),
        "routes": routes,
        "nbytes": draw(st.lists(st.integers(1, 1 << 10), min_size=n, max_size=n)),
        "release": draw(st.lists(st.integers(0, 64), min_size=n, max_size=n)) if release else [0] * n,
        "weights": [[draw(st.sampled_from([1.0, 0.5, 0.25])) for _ in route] for route in routes],
        "rate_cap": draw(st.lists(st.sampled_from([np.inf, np.inf, 0.5, 2, 7]), min_size=n, max_size=n)),
    }
    if changes:
        change = st.tuples(st.integers(0, 64), st.integers(0, n_links - 1), capacities)
        asked["changes"] = sorted(draw(st.lists(change, max_size=5)), key=lambda row: row[0])
    return asked


def capacity_over_time(asked, link):
    """When the capacity of a link changes [stretches], and to what; the first stretch begins at 0."""
    steps = [(0, asked["capacity"][link])] + [(at, c) for at, which, c in asked.get("changes", []) if which == link]
    return np.array([at for at, _ in steps], float), np.array([c for _, c in steps], float)


def carried_by(times, capacities, until):
    """The most bytes that a link of such capacities can have carried."""
    lengths = np.clip(np.append(times[1:], np.inf), 0, until) - np.clip(times, 0, until)
    return (lengths * capacities).sum()


@QUICK
@given(systems())
def test_no_link_carries_more_than_its_capacity_adds_up_to(asked):
    """Laws 12 and 14, over the integral of the capacity: at every end, the flows that have ended fit into what was possible."""
    ends = flow_times(**asked)
    for link in range(len(asked["capacity"])):
        times, capacities = capacity_over_time(asked, link)
        on_it = [(end, b * w[route.index(link)]) for end, b, w, route
                 in zip(ends, asked["nbytes"], asked["weights"], asked["routes"], strict=True) if link in route]  # fmt: skip
        for until, _ in on_it:
            through = sum(nbytes for end, nbytes in on_it if end <= until)
            assert through <= carried_by(times, capacities, until) * (1 + 1e-9)


@QUICK
@given(systems())
def test_no_flow_beats_its_own_cap_or_its_links_alone(asked):
    """Law 13."""
    ends = flow_times(**asked)
    for flow, route in enumerate(asked["routes"]):
        released, nbytes = asked["release"][flow], asked["nbytes"][flow]
        assert ends[flow] - released >= nbytes / asked["rate_cap"][flow] * (1 - 1e-9)
        for link, weight in zip(route, asked["weights"][flow], strict=True):
            times, capacities = capacity_over_time(asked, link)
            possible = carried_by(times, capacities, ends[flow]) - carried_by(times, capacities, released)
            assert nbytes * weight <= possible * (1 + 1e-9) + 1e-9


@QUICK
@given(systems(changes=False, release=False))
def test_time_is_at_most_the_sum_of_loads_along_a_route(asked):
    """Law 15, over physical and virtual links: a cap is a link of the flow's own. While a flow lives, one of them is full."""
    ends = flow_times(**asked)
    load = np.zeros(len(asked["capacity"]))
    for route, weights, nbytes in zip(asked["routes"], asked["weights"], asked["nbytes"], strict=True):
        load[route] += np.array(weights) * nbytes
    load /= asked["capacity"]
    own = np.array(asked["nbytes"]) / np.array(asked["rate_cap"])
    most = np.array([load[route].sum() for route in asked["routes"]]) + own
    assert (ends <= most * (1 + 1e-9)).all()
    assert ends.max() >= max(load.max(), own.max()) * (1 - 1e-9)


@QUICK
@given(systems(), st.sampled_from([0.125, 3.0, 1e6]))
def test_scaling_all_speeds_or_all_bytes_scales_time(asked, factor):
    """Law 18."""
    ends = flow_times(**asked)
    rates = {"capacity": np.array(asked["capacity"]) * factor, "rate_cap": np.array(asked["rate_cap"]) * factor}
    sooner = [(at / factor, link, c * factor) for at, link, c in asked["changes"]]
    got = flow_times(**asked | rates | {"release": np.array(asked["release"]) / factor, "changes": sooner})
    np.testing.assert_allclose(got, ends / factor, rtol=1e-9)
    later = [(at * factor, link, c) for at, link, c in asked["changes"]]
    bytes_ = {"nbytes": np.array(asked["nbytes"]) * factor, "release": np.array(asked["release"]) * factor}
    np.testing.assert_allclose(flow_times(**asked | bytes_ | {"changes": later}), ends * factor, rtol=1e-9)


@QUICK
@given(systems(), st.randoms(use_true_random=False))
def test_renaming_flows_and_links_renames_the_ends(asked, rng):
    """Laws 22 and 31: nothing depends on the order in which flows or links are given."""
    flows, links = list(range(len(asked["routes"]))), list(range(len(asked["capacity"])))
    rng.shuffle(flows)
    rng.shuffle(links)                              # link x is now called links[x]
    renamed = {key: [asked[key][f] for f in flows] for key in ("nbytes", "release", "weights", "rate_cap")}
    renamed["routes"] = [[links[x] for x in asked["routes"][f]] for f in flows]
    renamed["capacity"] = [asked["capacity"][links.index(x)] for x in range(len(links))]
    renamed["changes"] = [(at, links[x], c) for at, x, c in asked["changes"]]
    np.testing.assert_allclose(flow_times(**renamed), flow_times(**asked)[flows], rtol=1e-9)


@QUICK
@given(systems())
def test_flows_that_are_all_cut_in_two_end_when_they_did(asked):
    """Halves with half of the bytes and half of the cap get half of the rate each."""
    halves = {key: [row for row in asked[key] for _ in range(2)] for key in ("routes", "release", "weights")}
    halves |= {key: [row / 2 for row in asked[key] for _ in range(2)] for key in ("nbytes", "rate_cap")}
    ends = flow_times(**asked | halves)
    np.testing.assert_allclose(ends[::2], ends[1::2], rtol=1e-9)
    np.testing.assert_allclose(ends[::2], flow_times(**asked), rtol=1e-9)
