"""Flows over any links: hand-derived sharing, the exact solver in rationals, extreme sizes and times, and what is refused."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.network import sharing
from clustersim.network.freeform import flow_times
from clustersim.network.pairs import transfer
from clustersim.types import InputError
from tests.reference import fast, finish_times, waiting


def small_system(rng, *, weighted=False):
    """A few flows over a few links, integers throughout: many links fill up at once."""
    n_links, n_flows = rng.randint(1, 7), rng.randint(1, 14)
    routes = [rng.sample(range(n_links), rng.randint(1, min(n_links, 5))) for _ in range(n_flows)]
    return {
        "capacity": [rng.choice([1, 2, 10, rng.randint(1, 30)]) for _ in range(n_links)],
        "routes": routes,
        "nbytes": [rng.choice([1, 2, 5, 10, rng.randint(1, 100)]) for _ in range(n_flows)],
        "release": [rng.choice([0, 0, 0, rng.randint(0, 20)]) for _ in range(n_flows)],
        "weights": [[rng.choice([1, 0.5, 0.25, 0.125]) for _ in route] for route in routes] if weighted else None,
    }


def test_400_random_systems_against_exact_rationals():
    for seed in range(400):
        system = small_system(random.Random(seed))
        expected = [float(end) for end in finish_times(**system)]
        del system["weights"]
        np.testing.assert_allclose(flow_times(**system), expected, rtol=1e-9, err_msg=f"seed {seed}")


def test_200_random_systems_with_weights_against_exact_rationals():
    for seed in range(200):
        system = small_system(random.Random(seed), weighted=True)
        expected = [float(end) for end in finish_times(**system)]
        np.testing.assert_allclose(fast(**system).flows["drain"], expected, rtol=1e-9, err_msg=f"seed {seed}")


def test_sizes_from_one_byte_to_a_terabyte():
    for seed in range(60):
        rng = random.Random(1000 + seed)
        system = small_system(rng)
        system["nbytes"] = [round(10 ** rng.uniform(0, 12)) for _ in system["nbytes"]]
        system["capacity"] = [rng.choice([450e9, 50e9, 25e9, 400]) for _ in system["capacity"]]
        system["release"] = [rng.choice([0, 0, 1e-9, 1e-3, 5]) for _ in system["release"]]
        del system["weights"]
        expected = [float(end) for end in finish_times(**system)]
        np.testing.assert_allclose(flow_times(**system), expected, rtol=1e-9, err_msg=f"seed {seed}")


def test_microseconds_long_after_the_clock_began():
    """At 100 s two neighbouring floats are 1.4e-14 s apart: 10 us are known to some 1e-9 and the clock must not stall."""
    for seed in range(60):
        rng = random.Random(2000 + seed)
        system = small_system(rng)
        system["nbytes"] = [rng.randint(1, 1_000_000) for _ in system["nbytes"]]
        system["capacity"] = [rng.choice([450e9, 50e9]) for _ in system["capacity"]]
        system["release"] = [100 + rng.choice([0, 0, rng.randint(0, 20) * 1e-6]) for _ in system["release"]]
        del system["weights"]
        expected = np.array([float(end) for end in finish_times(**system)])
        np.testing.assert_allclose(flow_times(**system), expected, rtol=1e-13, err_msg=f"seed {seed}")


def test_a_transfer_shorter_than_the_clock_can_tell_still_ends():
    ends = flow_times([1e12, 1e12], [[0], [0, 1], [1]], [1, 1, 1e12], [1e6, 1e6, 0])
    np.testing.assert_allclose(ends, [1e6, 1e6, 1.0], rtol=1e-12)


def test_hundreds_of_links_that_fill_up_at_one_instant():
    """n x n, every source to every destination, equal ports: all links fill at c/n, all flows end at n b / c."""
    n = 40
    routes = [[i, n + j] for i in range(n) for j in range(n)]
    state = fast([1e9] * (2 * n), routes, [1e6] * n * n, [0.0] * n * n)
    np.testing.assert_allclose(state.flows["drain"], n * 1e6 / 1e9, rtol=1e-12)
    assert sharing.solves(state) <= 3


def test_two_flows_share_one_link_and_the_long_one_speeds_up():
    """Link 10 B/s; 10 and 30 bytes. Each has 5 B/s until the short one ends at 2 s; the other then has 20 left at 10 B/s: 4 s."""
    np.testing.assert_allclose(flow_times([10], [[0], [0]], [10, 30], 0.0), [2.0, 4.0], rtol=1e-12)


def test_a_late_flow_halves_the_rate_from_its_release_on():
    """Link 10 B/s; 30 bytes at 0, 10 bytes at 1. The first has 20 left at 1 s; both at 5 B/s: the second ends at 3 s, when the
    first has 10 left, at 10 B/s: 4 s."""
    np.testing.assert_allclose(flow_times([10], [[0], [0]], [30, 10], [0.0, 1.0]), [4.0, 3.0], rtol=1e-12)


def test_parking_lot():
    """One flow over links 1, 2, 3 and one flow on each alone, 6 B/s each: all have 3 B/s. Short flows of 3, 6 and 9 bytes end
    at 1, 2 and 3 s; the long one is held to 3 B/s by link 3 until 3 s, has then sent 9 of 15, and the last 6 go at 6 B/s: 4 s."""
    ends = flow_times([6, 6, 6], [[0, 1, 2], [0], [1], [2]], [15, 3, 6, 9], 0.0)
    np.testing.assert_allclose(ends, [4.0, 1.0, 2.0, 3.0], rtol=1e-12)


def test_what_one_flow_cannot_use_the_other_gets():
    """Links 1 B/s and 10 B/s. A crosses both and is held to 1 by the first, so B has 9 on the second and ends 18 bytes at 2 s.
    A then still has 1 B/s: 5 bytes at 5 s."""
    np.testing.assert_allclose(flow_times([1, 10], [[0, 1], [1]], [5, 18], 0.0), [5.0, 2.0], rtol=1e-12)


def test_max_min_gives_nine_tenths_where_a_fifo_would_give_one():
    """A on L1; B on L1 and L2; nine others on L2; all capacities 1. L2 gives each of its ten flows 0.1, so B leaves A 0.9 of
    L1: 0.9 bytes take it 1 s. (FIFO queues would let B's share of the arrivals, one half, block A down to B's 0.1.)"""
    ends = flow_times([1, 1], [[0], [0, 1]] + [[1]] * 9, [0.9, 10.0] + [10.0] * 9, 0.0)
    assert ends[0] == pytest.approx(1.0, rel=1e-12)


def test_spraying_over_two_links_gives_the_sum_of_their_rates():
    """Half of A on each of two links of 10 B/s, B on the first alone, both rates r: r/2 + r = 10, r = 20/3. B's 20 bytes end
    at 3 s; A has 40 of 60 left and then both links to itself: 20 B/s, 5 s."""
    state = fast([10, 10], [[0, 1], [0]], [60, 20], [0, 0], weights=[[0.5, 0.5], [1]])
    np.testing.assert_allclose(state.flows["drain"], [5.0, 3.0], rtol=1e-12)


def test_nothing_to_send_and_nowhere_to_go_take_no_time():
    ends = flow_times([1.0], [[0], [], [0]], [0, 5, 3], [1, 2, 4])
    np.testing.assert_array_equal(ends, [1.0, 2.0, 7.0])
    assert flow_times([1.0], [], [], 0.0).shape == (0,)


def test_a_rate_cap_leaves_the_rest_to_the_others():
    """Link 10 B/s; A may have 2 B/s, so B has 8 and ends 16 bytes at 2 s; A still has 2 B/s and ends 10 bytes at 5 s."""
    np.testing.assert_allclose(flow_times([10], [[0], [0]], [10, 16], 0.0, rate_cap=[2, np.inf]), [5.0, 2.0], rtol=1e-12)


def test_a_link_that_slows_down_and_comes_back_while_flows_run():
    """100 bytes at 10 B/s; from 4 s the link has 5 B/s, from 6 s none, from 10 s 25 B/s: 40 + 10 + 0 bytes are gone by 10 s, and
    the last 50 take 2 s."""
    ends = flow_times([10], [[0]], [100], 0.0, changes=[(6, 0, 0), (4, 0, 5), (10, 0, 25)])
    np.testing.assert_allclose(ends, [12.0], rtol=1e-12)


def test_a_link_that_slows_down_gives_its_share_to_others():
    """A over links 0 and 1, B over link 1, 10 B/s each: 5 and 5. At 2 s link 0 falls to 1 B/s: A has 1 and B 9. B's 46 bytes:
    10 by 2 s, then 36 at 9 B/s: 6 s. A has sent 14 of 20 by then and goes on at 1 B/s: 12 s."""
    ends = flow_times([10, 10], [[0, 1], [1]], [20, 46], 0.0, changes=[(2, 0, 1)])
    np.testing.assert_allclose(ends, [12.0, 6.0], rtol=1e-12)


def test_a_link_that_stays_down_is_refused():
    with pytest.raises(InputError, match="1 flows never end: link 0"):
        flow_times([10, 10], [[0], [1]], [100, 10], 0.0, changes=[(1, 0, 0)])


def test_60_random_systems_with_rate_caps_equal_those_with_links_of_their_own():
    for seed in range(60):
        rng = random.Random(seed)
        system = small_system(rng)
        caps = [rng.choice([np.inf, 1, 3, rng.randint(1, 20)]) for _ in system["nbytes"]]
        del system["weights"]
        got = flow_times(**system, rate_cap=caps)
        own = [i for i, cap in enumerate(caps) if cap < np.inf]
        routes = [list(route) for route in system["routes"]]
        for place, i in enumerate(own):
            routes[i].append(len(system["capacity"]) + place)
        system |= {"capacity": [*system["capacity"], *(caps[i] for i in own)], "routes": routes}
        expected = [float(end) for end in finish_times(**system)]
        np.testing.assert_allclose(got, expected, rtol=1e-9, err_msg=f"seed {seed}")


@pytest.mark.parametrize("resolution", [0.001, 0.01, 0.1, 1.0])
def test_coarse_steps_never_beat_the_busiest_link_and_are_near_the_exact_solution(resolution):
    """However coarse, no link has carried more than it can when its last flow ends. Fine steps are nearly exact: what a link's
    flows gain from each other's ends is theirs at once, and only what crosses links waits for the next step."""
    rng = np.random.default_rng(0)
    cluster = load_cluster("h100_2to1", nodes=4)
    nbytes = rng.lognormal(0, 1.5, (32, 32)) * 1e6
    exact, coarse = transfer(cluster, nbytes), transfer(cluster, nbytes, resolution=resolution)
    assert coarse.makespan >= exact.bound * (1 - 1e-9)
    assert coarse.solves < exact.solves
    if resolution <= 0.01:
        assert coarse.makespan == pytest.approx(exact.makespan, rel=resolution)
        last = [np.nanmax(t.finish, axis=0) for t in (exact, coarse)]
        assert (np.quantile(np.abs(last[1] / last[0] - 1), [0.5, 0.9]) < [resolution, 2 * resolution]).all()


SIMGRID = json.loads((Path(__file__).parents[1] / "data" / "simgrid.json").read_text())


@pytest.mark.parametrize("system", SIMGRID["systems"], ids=lambda system: system["name"])
def test_every_flow_ends_when_simgrid_says(system):
    """Another simulator's fluid max-min, run once with tight precision; the file says how."""
    got = flow_times(system["capacity"], system["routes"], system["nbytes"], system["release"])
    np.testing.assert_allclose(got, system["finish"], rtol=1e-9)


def test_the_arguments_are_left_as_they_were():
    release, nbytes = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    flow_times([1.0], [[0], [0]], nbytes, release)
    assert release.tolist() == [0.0, 1.0]
    assert nbytes.tolist() == [1.0, 2.0]


def test_flows_may_join_and_leave_the_state_at_any_time():
    """The state is taken apart (`keep`) and put together with more flows (`extend`) in the middle; no finish time changes."""
    for seed in range(40):
        rng = random.Random(3000 + seed)
        system = small_system(rng, weighted=True)
        n = len(system["nbytes"])
        first = rng.randint(1, n)
        middle = max(system["release"][:first]) + rng.random() * 3 + 0.01
        system["release"][first:] = [middle + 1 + r for r in system["release"][first:]]
        rows = {key: system[key][:first] for key in ("routes", "nbytes", "weights")}
        state = waiting(system["capacity"], **rows)
        sharing.enter(state, np.arange(first), np.array(system["release"][:first], float))
        while sharing.run(state, middle) <= middle:
            sharing.take_ended(state)
        ends = np.full(n, np.nan)
        alive = np.setdiff1d(np.arange(first), sharing.drained(state))
        ends[:first] = np.where(np.isin(np.arange(first), alive), np.nan, state.flows["drain"])
        sharing.take_ended(state)
        state = sharing.keep(state, alive, alive)
        rows = {key: system[key][first:] for key in ("routes", "nbytes", "weights")}
        state = waiting(system["capacity"], **rows, onto=state)
        sharing.enter(state, np.arange(alive.size, state.flows.size), np.array(system["release"][first:], float))
        while sharing.run(state, np.inf) < np.inf:
            sharing.take_ended(state)
        ends[np.concatenate((alive, np.arange(first, n)))] = state.flows["drain"]
        expected = [float(end) for end in finish_times(**system)]
        np.testing.assert_allclose(ends, expected, rtol=1e-9, err_msg=f"seed {seed}")


GOOD = {"capacity": [1.0, 2.0], "routes": [[0], [0, 1]], "nbytes": [1.0, 2.0], "release": 0.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nbytes": [1.0, -2.0]}, "nbytes"),
        ({"nbytes": [1.0, float("nan")]}, "nbytes"),
        ({"nbytes": [1.0, float("inf")]}, "nbytes"),
        ({"release": -1.0}, "release"),
        ({"release": [0.0, float("nan")]}, "release"),
        ({"release": [0.0, 0.0, 0.0]}, "release"),
        ({"capacity": [0.0, 2.0]}, "link 0"),
        ({"capacity": [1.0, -2.0]}, "link 1"),
        ({"capacity": [1.0, float("nan")]}, "link 1"),
        ({"capacity": [1.0, float("inf")]}, "link 1"),
        ({"routes": [[0], [0, 2]]}, "link 2"),
        ({"routes": [[0], [-1]]}, "link -1"),
        ({"routes": [[0]]}, "routes"),
        ({"resolution": 1.01}, "resolution"),
        ({"resolution": -1.0}, "resolution"),
    ],
)
def test_flow_times_refuses_bad_input_in_one_line(change, named):
    with pytest.raises(InputError) as caught:
        flow_times(**GOOD | change)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_without_capacity_may_stand_idle():
    np.testing.assert_allclose(flow_times([0.0, 2.0], [[1]], [4.0], 0.0), [2.0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"nbytes": -np.ones((16, 16))}, "nbytes"),
        ({"nbytes": np.full((16, 16), np.nan)}, "nbytes"),
        ({"nbytes": np.full((16, 16), np.inf)}, "nbytes"),
        ({"nbytes": np.ones((8, 8))}, "nbytes"),
        ({"nbytes": np.ones(16)}, "nbytes"),
        ({"release": -1.0}, "release"),
        ({"release": np.nan}, "release"),
        ({"release": np.zeros(8)}, "release"),
        ({"network": "fluidd"}, "network=fluidd"),
        ({"resolution": 1.5}, "resolution"),
    ],
)
def test_transfer_refuses_bad_input_in_one_line(change, named):
    with pytest.raises(InputError) as caught:
        transfer(load_cluster("ideal_rail", nodes=2), **{"nbytes": np.ones((16, 16))} | change)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
