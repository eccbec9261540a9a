"""Transfers that follow others chunk by chunk: closed forms by hand, and random systems against exact rationals."""

import random

import numpy as np
import pytest

from tests.reference import fast, finish_times


def ends(*args, **kwargs):
    return fast(*args, **kwargs).flows["drain"]


@pytest.mark.parametrize("pieces", [1, 2, 8, 1000])
def test_a_fast_second_hop_ends_one_own_chunk_after_the_first(pieces):
    """100 bytes at 10 B/s, then at 50 B/s in chunks of 100/m: the first hop ends at 10 s, the last chunk takes 2/m s more."""
    chunk = 100 / pieces
    np.testing.assert_allclose(
        ends([10, 50], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[chunk, chunk]), [10, 10 + 2 / pieces], rtol=1e-9
    )


@pytest.mark.parametrize("pieces", [1, 2, 8, 1000])
def test_a_slow_second_hop_starts_after_the_first_chunk_and_then_sets_the_pace(pieces):
    """100 bytes at 50 B/s, then at 10 B/s: the first chunk lands at 2/m s and the second hop needs 10 s from there."""
    chunk = 100 / pieces
    np.testing.assert_allclose(
        ends([50, 10], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[chunk, chunk]), [2, 10 + 2 / pieces], rtol=1e-9
    )


def test_hops_of_different_sizes_are_coupled_by_fractions():
    """100 bytes at 10 B/s; its follower sums pairs into 50 bytes, chunks of 5 (a tenth), on a 10 B/s link of its own: it could
    take 5 s but keeps a tenth behind and ends at 10 s plus 5 bytes at 10 B/s."""
    got = ends([10, 10], [[0], [1]], [100, 50], [0, 0], after=[[], [0]], chunk=[10, 5])
    np.testing.assert_allclose(got, [10, 10.5], rtol=1e-9)


@pytest.mark.parametrize("chunk", [100, 101, 1e9])
def test_a_chunk_as_large_as_the_transfer_is_a_barrier(chunk):
    state = fast([10, 50], [[0], [1]], [100, 100], [0, 0], after=[[], [0]], chunk=[chunk, chunk])
    np.testing.assert_allclose(state.flows["start"], [0, 10])
    np.testing.assert_allclose(state.flows["drain"], [10, 12])


def test_the_slowest_of_several_parents_counts():
    """Parents end at 10, 5 and 2 s; the follower keeps a tenth behind the first and ends at 10 s + 10 bytes at 100 B/s."""
    got = ends([10, 20, 50, 100], [[0], [1], [2], [3]], [100] * 4, [0] * 4, after=[[], [], [], [0, 1, 2]], chunk=[10] * 4)
    np.testing.assert_allclose(got, [10, 5, 2, 10.1], rtol=1e-9)


def test_parents_that_take_turns_at_being_the_slowest():
    """A: 100 bytes at 10 B/s from 0. B: 100 bytes at 20 B/s from 4 s, ends at 9 s. The follower (100 B/s, chunks of 10) starts
    when B's first chunk is in, at 4.5 s, follows B (which A leads until 8 s; from there A is behind), and keeps a tenth
    behind A to its end at 10 s: 10.1 s."""
    state = fast([10, 20, 100], [[0], [1], [2]], [100] * 3, [0, 4, 0], after=[[], [], [0, 1]], chunk=[10] * 3)
    np.testing.assert_allclose(state.flows["start"], [0, 4, 4.5], rtol=1e-9)
    np.testing.assert_allclose(state.flows["drain"], [10, 9, 10.1], rtol=1e-9)


@pytest.mark.parametrize("hops", [2, 3, 5])
def test_chains_add_one_chunk_per_hop(hops):
    """Equal links of 10 B/s, 100 bytes in chunks of 1: hop h ends h chunk times after the first."""
    got = ends(
        [10] * hops, [[h] for h in range(hops)], [100] * hops, [0] * hops,
        after=[[], *([h] for h in range(hops - 1))], chunk=[1] * hops,
    )  # fmt: skip
    np.testing.assert_allclose(got, 10 + 0.1 * np.arange(hops), rtol=1e-9)


def test_a_slow_hop_in_the_middle_of_a_chain():
    """100, 10 and 50 B/s, chunks of 10: the middle starts at 0.1 s and ends at 10.1 s; the last ends 10/50 s later."""
    got = ends([100, 10, 50], [[0], [1], [2]], [100] * 3, [0] * 3, after=[[], [0], [1]], chunk=[10] * 3)
    np.testing.assert_allclose(got, [1, 10.1, 10.3], rtol=1e-9)


def test_a_source_that_enters_late_catches_up_and_then_follows():
    """First hop: 100 bytes at 10 B/s. The forwarder enters at 4 s, when 40 % are in; at 40 B/s and chunks of 10 it has sent x at
    4 + x/40 s, and is a tenth behind when 10 (4 + x/40) - 10 = x: x = 40 at 5 s. From there 10 B/s, and it ends at 10.25 s."""
    state = fast([10, 40], [[0], [1]], [100, 100], [0, 4], after=[[], [0]], chunk=[10, 10])
    np.testing.assert_allclose(state.flows["start"], [0, 4], rtol=1e-9)
    np.testing.assert_allclose(state.flows["drain"], [10, 10.25], rtol=1e-9)


def test_a_source_that_enters_last_finds_everything_there():
    np.testing.assert_allclose(ends([10, 40], [[0], [1]], [100, 100], [0, 20], after=[[], [0]], chunk=[10, 10]), [10, 22.5])


def test_a_parent_that_speeds_up_takes_its_follower_along():
    """The first hop shares 20 B/s with a stranger of 50 bytes until 5 s, has then 50 of 100 left at 20 B/s: ends at 7.5 s.
    The follower (100 B/s, chunks of 10) keeps a tenth behind all along and ends at 7.6 s."""
    got = ends([20, 100], [[0], [0], [1]], [100, 50, 100], [0, 0, 0], after=[[], [], [0]], chunk=[10] * 3)
    np.testing.assert_allclose(got, [7.5, 5, 7.6], rtol=1e-9)


def test_a_follower_on_the_link_of_its_parent():
    """One link of 30 B/s; 200 bytes followed by 100 bytes in chunks of 1/10. Alone, the first tenth takes 20/30 s. Then the
    follower has half its parent's rate, 10 of 30 B/s: 180 bytes at 20 B/s, 9 s. The last tenth then takes 10/30 s."""
    got = ends([30], [[0], [0]], [200, 100], [0, 0], after=[[], [0]], chunk=[20, 10])
    np.testing.assert_allclose(got, [2 / 3 + 9, 10], rtol=1e-9)


@pytest.mark.parametrize("n", [2, 8, 30])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.999, 1.0])
def test_many_followers_on_the_link_of_their_parent(n, ratio):
    """Their sum holds back what they all follow, more than one for one: parent x, followers `ratio` x each, (1 + n ratio) x = c.
    (Taking over the pace at once would swing between c/(n + 1) and c for ever.)"""
    after, chunk = [[], *[[0]] * n], [0.25 * ratio] * (n + 1)
    state = fast([1.0], [[0]] * (n + 1), [1.0] + [ratio] * n, [0.0] * (n + 1), after=after, chunk=chunk)
    parent = 0.25 + 0.75 * (1 + n * ratio)
    np.testing.assert_allclose(state.flows["drain"][0], parent, rtol=1e-9)
    np.testing.assert_allclose(state.flows["drain"][1:], parent + 0.25 * n * ratio, rtol=1e-9)


def test_a_follower_whose_link_and_whose_parent_allow_just_the_same():
    """Parent and twin on links 0 (6 B/s) and 1 (12 B/s), 1 byte each; a follower of 2 bytes on link 1, chunks of an eighth.

    The parent has 6 B/s until its first eighth is in at 1/48 s; then parent and twin have 3, and the follower 6: its pace, and
    all that link 1 has left. A stranger of 1 byte joins on both links at 0.15 s: parent, twin and stranger have 2, the
    follower 4. The parent's last 0.4875 bytes end at 0.39375 s; twin and stranger then have 3, the follower 6: the last
    eighths take 1/24 s more, to 0.4354167 s, and the stranger's last 0.3875 bytes at 6 B/s end at 0.5 s.
    """
    routes, after = [[0, 1], [0, 1], [1], [0, 1]], [[], [0], [0], []]
    got = ends([6, 12], routes, [1, 1, 2, 1], [0, 0, 0, 0.15], after=after, chunk=[1, 0.125, 0.25, 1])
    np.testing.assert_allclose(got, [0.39375, 0.39375 + 1 / 24, 0.39375 + 1 / 24, 0.5], rtol=1e-9)


def test_a_follower_held_by_its_parent_on_a_full_link_moves_on_alone_after_it():
    """Parent (10 bytes) and follower (1 byte, chunks of a sixteenth) fill a link of 1 B/s at 10:1 from the first chunk on:
    10/16 s, then 15/16 of 11 bytes, 10.9375 s in all; the follower's last 1/16 byte then has the link to itself: 11 s. Others
    on a second link come and go meanwhile."""
    got = ends(
        [1, 7], [[0], [0, 1], [1], [1]], [10, 1, 14, 5], [0, 0, 2, 3], after=[[], [0], [], []], chunk=[10, 1 / 16, 14, 5],
    )  # fmt: skip
    np.testing.assert_allclose(got[:2], [10.9375, 11.0], rtol=1e-9)


def coupled_system(rng, *, shared, chains):
    """Flows on some links and flows that follow up to three of them: on other links, or (`shared`) on any."""
    n_links, n = rng.randint(2, 6), rng.randint(2, 12)
    first_hops = rng.randint(1, n)
    after, routes = [], []
    for i in range(n):
        follows = i >= first_hops or (chains and i > 0 and rng.random() < 0.5)
        eligible = range(i) if chains else range(first_hops)
        after.append(sorted(rng.sample(eligible, rng.randint(1, min(len(eligible), 3)))) if follows else [])
        pool = range(n_links) if shared else [x for x in range(n_links) if x % 2 == (1 if follows else 0)]
        routes.append(rng.sample(pool, rng.randint(1, min(len(pool), 3))))
    nbytes = [rng.choice([1, 2, 5, 10, rng.randint(1, 100)]) for _ in range(n)]
    return {
        "capacity": [rng.randint(1, 20) for _ in range(n_links)],
        "routes": routes,
        "nbytes": nbytes,
        "release": [rng.choice([0, 0, 0, rng.randint(0, 20)]) for _ in range(n)],
        "after": after,
        "chunk": [rng.choice([b, b / 2, b / 8, b / 64]) for b in nbytes],
    }


@pytest.mark.parametrize(("shared", "chains"), [(False, False), (True, False), (True, True)])
def test_200_random_systems_against_exact_rationals(shared, chains):
    for seed in range(200):
        system = coupled_system(random.Random(seed), shared=shared, chains=chains)
        expected = [float(end) for end in finish_times(**system)]
        np.testing.assert_allclose(fast(**system).flows["drain"], expected, rtol=1e-7, err_msg=f"seed {seed}")


def test_random_systems_late_in_the_day():
    """The same systems, 1e9 times shorter and from 100 s on, where the clock ticks in 1e-14 s."""
    for seed in range(100):
        system = coupled_system(random.Random(seed), shared=False, chains=False)
        expected = np.array([float(end) for end in finish_times(**system)])
        system["capacity"] = [c * 1e6 for c in system["capacity"]]
        system["release"] = [100 + r * 1e-6 for r in system["release"]]
        got = fast(**system).flows["drain"]
        np.testing.assert_allclose(got - 100, expected * 1e-6, rtol=1e-5, atol=1e-12, err_msg=f"seed {seed}")


def test_a_follower_is_never_ahead_of_what_it_follows():
    """Watched at many instants: fraction of the follower <= fraction of the parent - chunk / nbytes while the parent lives."""
    from clustersim.network import exact_records, sharing
    from tests.reference import waiting

    for seed in range(60):
        system = coupled_system(random.Random(seed), shared=True, chains=True)
        release = np.array(system.pop("release"), float)
        state = waiting(**system)
        sharing.enter(state, np.arange(release.size), release)
        for now in np.linspace(0.01, 60, 400):
            while sharing.run(state, now) <= now:
                sharing.take_ended(state)
            flows = state.flows
            moved = sharing.sent(state, now) / flows["nbytes"]
            for child, parents in enumerate(system["after"]):
                for parent in parents:
                    if flows["status"][parent] == exact_records.DONE:
                        continue
                    assert moved[child] <= max(0.0, moved[parent] - flows["piece"][child]) + 1e-8, (seed, now, parent, child)
