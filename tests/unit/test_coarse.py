"""Coarse steps of the event loop: what follows others chunk by chunk, against exact rationals and against closed forms."""

import random

import numpy as np
import pytest

from clustersim.network import coarse, coarse_records
from clustersim.network.changes import Changes
from clustersim.types import Routes, Transfers
from tests.reference import finish_times
from tests.unit.test_coupling import coupled_system


def played(capacity, routes, nbytes, release, *, after=None, chunk=None, changes=(), resolution=1e-3, seconds=1.0):
    """The state after the last flow has drained; steps of `resolution` x `seconds`."""
    n = len(routes)
    after, chunk = after or [[] for _ in routes], nbytes if chunk is None else chunk
    to_come = None
    if changes:
        time, link, then = (np.array(column) for column in zip(*sorted(changes), strict=True))
        to_come = Changes(time=time.astype(float), link=link, capacity=then.astype(float))
    rows = Routes(
        start=np.cumsum([0, *map(len, routes)]), links=np.array([x for route in routes for x in route], np.int64),
        weights=np.ones(sum(map(len, routes))), latency=np.zeros(n),
    )  # fmt: skip
    transfers = Transfers(
        src=np.zeros(n, np.int64), dst=np.zeros(n, np.int64), nbytes=np.asarray(nbytes, float), release=np.zeros(n),
        chunk=np.asarray(chunk, float), after_start=np.cumsum([0, *map(len, after)]),
        after=np.array([p for row in after for p in row], np.int64),
    )  # fmt: skip
    state = coarse.empty(np.asarray(capacity, float), to_come)
    state = coarse.extend(state, rows, transfers, inbox=np.arange(n), outbox=np.arange(n), n_counters=n)
    coarse.set_resolution(state, resolution, seconds)
    coarse.enter(state, np.arange(n), np.asarray(release, float))
    while coarse.run(state, np.inf) < np.inf:
        coarse.take_ended(state)
    assert coarse.drained(state).size == n, "flows are left"
    return state


@pytest.mark.parametrize("pieces", [1, 2, 8, 1000])
def test_a_fast_second_hop_ends_one_own_chunk_after_the_first(pieces):
    """100 bytes at 10 B/s, then at 50 B/s in chunks of 100/m: the first hop ends at 10 s, the last chunk takes 2/m s more."""
    state = played([10, 50], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[100 / pieces] * 2, resolution=0.01)
    np.testing.assert_allclose(state.flows["drain"], [10, 10 + 2 / pieces], rtol=1e-9)


@pytest.mark.parametrize("pieces", [2, 8, 1000])
def test_a_slow_second_hop_sets_the_pace(pieces):
    """100 bytes at 50 B/s, then at 10 B/s: the first chunk lands at 2/m s and the second hop needs 10 s from there."""
    state = played([50, 10], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[100 / pieces] * 2, resolution=0.01)
    np.testing.assert_allclose(state.flows["drain"], [2, 10 + 2 / pieces], rtol=2e-3)


def test_followers_on_a_full_link_share_it_and_what_does_not_follow_has_its_part():
    """Two transfers of 100 bytes at 10 B/s each, followed over one link of 15 B/s that a stranger of 40 bytes shares from 0 on;
    chunks of 1. The stranger has 15 B/s for 0.1 s, until the first chunks are in, then 5: 7.8 s. The link is always full: 240
    bytes take 16 s."""
    state = played(
        [10, 10, 15], [[0], [1], [2], [2], [2]], [100, 100, 100, 100, 40], [0] * 5, after=[[], [], [0], [1], []],
        chunk=[1, 1, 1, 1, 40], resolution=0.001,
    )  # fmt: skip
    np.testing.assert_allclose(state.flows["drain"][[0, 1, 4]], [10, 10, 7.8], rtol=2e-3)
    np.testing.assert_allclose(state.flows["drain"][[2, 3]], 16.0, rtol=0.002)


def test_who_waits_for_a_flow_that_ends_within_a_step_waits_for_the_next_one_then():
    """Transfers of 0.2 and of 100 bytes at 10 B/s each are followed by one of 100 bytes at 50 B/s in chunks of 1. The short one
    is through after 0.02 s, within the first step, which is 0.05 s; the first chunk of the long one is after 0.1 s. The follower
    keeps up with the long one and has its last chunk to send when that ends at 10 s."""
    state = played(
        [10, 10, 50], [[0], [1], [2]], [0.2, 100, 100], [0] * 3, after=[[], [], [0, 1]], chunk=[1] * 3, resolution=0.1, seconds=10
    )  # fmt: skip
    assert state.flows["start"][2] == pytest.approx(0.1, rel=1e-6)
    np.testing.assert_allclose(state.flows["drain"], [0.02, 10, 10.02], rtol=1e-9)


@pytest.mark.parametrize("late", [0.0, 2.0])
def test_flows_of_one_way_are_looked_at_as_one_where_they_are_let_go_at_once(late):
    """Forty flows of 1 to 40 bytes on one link of 10 B/s: flow i ends when 1 + ... + i - 1 bytes and 41 - i times i bytes have
    gone. Let go at once they are one bundle, and a step looks at one flow; where one comes 2 s later they are none, and when all
    have gone 820 bytes have."""
    n = 40
    release = np.zeros(n)
    release[7] = late
    state = played([10], [[0]] * n, np.arange(1.0, n + 1), release, resolution=0.01, seconds=82)
    i = np.arange(1, n + 1)
    steps, looks = (state.tally[x] for x in (coarse_records.STEPS, coarse_records.FLOW_VISITS))
    if late:
        assert looks > 20 * steps
        np.testing.assert_allclose(state.flows["drain"].max(), 82, rtol=1e-9)
    else:
        assert looks <= 4 * steps
        np.testing.assert_allclose(state.flows["drain"], (i * (i - 1) / 2 + (n + 1 - i) * i) / 10, rtol=1e-9)


def test_flows_of_one_pair_that_go_different_ways_are_no_bundle():
    """Two flows of 10 bytes from one GPU to another, over a link of 10 B/s and one of 5 B/s; a third takes the first's way."""
    state = played([10, 5], [[0], [1], [0]], [10, 10, 10], [0, 0, 0], resolution=0.01)
    np.testing.assert_array_equal(state.moves["head"], [0, 1, 0])
    np.testing.assert_allclose(state.flows["drain"], [2, 2, 2], rtol=1e-9)


def test_led_flows_are_not_looked_at_where_they_cannot_fill_a_link():
    """Eight transfers over a port of 50 B/s, each followed to seven others over ports of 450 B/s: a step looks at the port's own
    eight, and at the 56 only where a last chunk outlasts a step."""
    parents, copies = 8, 7
    routes = [[0]] * parents + [[1, 2 + i % copies] for i in range(parents * copies)]
    after = [[]] * parents + [[i // copies] for i in range(parents * copies)]
    nbytes = [100.0 + i for i in range(parents)] + [10.0 + i // copies for i in range(parents * copies)]
    capacity = [50.0] + [450.0] * (1 + copies)
    chunk = [0.01 * b for b in nbytes]
    state = played(capacity, routes, nbytes, [0.0] * len(routes), after=after, chunk=chunk, resolution=0.01)
    steps = state.tally[coarse_records.STEPS]
    assert steps > 15
    assert state.tally[coarse_records.LED_VISITS] <= 2 * steps * parents * copies
    assert state.tally[coarse_records.FLOW_VISITS] <= 4 * parents * steps


@pytest.mark.parametrize("shared", [False, True], ids=["links of their own", "shared links"])
def test_100_random_systems_against_exact_rationals(shared):
    """Steps of a thousandth of the makespan: 99 in 100 flows within ten of them, and half within one."""
    late = []
    for seed in range(100):
        system = coupled_system(random.Random(seed), shared=shared, chains=False)
        exact = np.array([float(end) for end in finish_times(**system)])
        got = played(**system, resolution=1e-3, seconds=exact.max()).flows["drain"]
        late.append((got - exact) / exact.max())
    late = np.abs(np.concatenate(late))
    assert np.quantile(late, 0.99) <= 0.01
    assert np.median(late) <= 1e-3


def test_chains_of_followers_end_in_order():
    """Equal links of 10 B/s, 100 bytes in chunks of 1: hop h ends h chunk times after the first, to a step."""
    hops = 4
    after = [[], *([h] for h in range(hops - 1))]
    routes = [[h] for h in range(hops)]
    state = played([10] * hops, routes, [100] * hops, [0] * hops, after=after, chunk=[1] * hops, resolution=0.01)
    np.testing.assert_allclose(state.flows["drain"], 10 + 0.1 * np.arange(hops), atol=0.02)


@pytest.mark.parametrize("resolution", [0.3, 0.03, 0.003])
def test_no_follower_is_ahead_of_what_it_follows_and_no_link_of_its_capacity(resolution):
    """None begins before what it follows has begun, nor ends before it, whatever the steps.

    And since the first flow of a link began, however late, its bytes take their time at its capacity.
    """
    for seed in range(60):
        system = coupled_system(random.Random(seed), shared=True, chains=True)
        flows = played(**system, resolution=resolution, seconds=10.0).flows
        for child, parents in enumerate(system["after"]):
            for parent in parents:
                assert flows["drain"][child] >= flows["drain"][parent] * (1 - 1e-12), (seed, child, parent)
                assert flows["start"][child] >= flows["start"][parent] * (1 - 1e-12), (seed, child, parent)
        for link, capacity in enumerate(system["capacity"]):
            over = [f for f, route in enumerate(system["routes"]) if link in route]
            if over:
                took = flows["drain"][over].max() - flows["start"][over].min()
                assert took >= np.asarray(system["nbytes"])[over].sum() / capacity * (1 - 1e-9), (seed, link)
        slowest = [min(system["capacity"][link] for link in route) for route in system["routes"]]
        alone = np.divide(system["nbytes"], slowest)
        assert (flows["drain"] >= np.array(system["release"]) + alone * (1 - 1e-9)).all(), seed


def test_capacities_that_change_while_flows_are_led():
    """100 bytes at 10 B/s, from 5 s on at 5 B/s: 15 s. Their follower's link has 20 B/s, none from 8 s to 10 s: a tenth of a
    chunk behind, it stands still meanwhile, catches up, and ends a chunk (1 byte at 20 B/s) after the first."""
    changes = [(5, 0, 5), (8, 1, 0), (10, 1, 20)]
    state = played([10, 20], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[1, 1], changes=changes, resolution=0.01)
    np.testing.assert_allclose(state.flows["drain"], [15, 15.05], rtol=2e-3)


def test_a_flow_that_comes_late_has_what_nobody_had():
    """Steps of 1 s; a transfer of 100 bytes at 10 B/s is under way when at 3.3 s, within a step that has been played, another
    comes over a link of its own: it ends when it would have alone."""
    n = 2
    rows = Routes(start=np.array([0, 1, 2]), links=np.array([0, 1]), weights=np.ones(n), latency=np.zeros(n))
    nbytes = np.array([100.0, 40.0])
    transfers = Transfers(
        src=np.zeros(n, np.int64), dst=np.zeros(n, np.int64), nbytes=nbytes, release=np.zeros(n), chunk=nbytes,
        after_start=np.zeros(n + 1, np.int64), after=np.zeros(0, np.int64),
    )  # fmt: skip
    state, own = coarse.empty(np.array([10.0, 8.0])), np.arange(n)
    state = coarse.extend(state, rows, transfers, inbox=own, outbox=own, n_counters=n)
    coarse.set_resolution(state, 0.1, 10.0)
    coarse.enter(state, np.array([0]), np.zeros(1))
    ahead = coarse.run(state, 3.3)
    assert 3.3 < ahead <= 4.4
    coarse.enter(state, np.array([1]), np.array([3.3]))
    while coarse.run(state, np.inf) < np.inf:
        coarse.take_ended(state)
    np.testing.assert_allclose(state.flows["drain"], [10, 8.3], rtol=1e-9)
