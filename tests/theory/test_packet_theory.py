"""What is known of packets in queues: round robin under credits is max-min fair, one queue per link is not."""

import random
from fractions import Fraction

import numpy as np
import pytest

from clustersim import flow_times, load_cluster, transfer
from clustersim.network import packets
from tests.packet_systems import ends, played, small_system, steady_rates, weighted
from tests.reference import max_min_rates

NVLINK, NIC = 450e9, 50e9


# ---- one flow


@pytest.mark.parametrize("queue", packets.QUEUES)
def test_a_single_packet_takes_the_sum_over_its_links_of_sending_and_latency(queue):
    """1000 bytes over 100, 50 and 200 B/s with 1, 2 and 4 s of latency: 10 + 1 + 20 + 2 + 5 + 4. The fluid network would say
    20 + 7: it sends over all links at once."""
    end = ends([100, 50, 200], [[0, 1, 2]], [1000], chunk=1000, latency=[1, 2, 4], queue=queue)
    np.testing.assert_allclose(end, [42], rtol=1e-12)


@pytest.mark.parametrize("queue", packets.QUEUES)
@pytest.mark.parametrize("latency", [0.0, 0.013, 1.7, 40.0])
@pytest.mark.parametrize("capacity", [[100, 100], [100, 20, 50], [20, 100], [7, 90, 11, 30]])
def test_packets_of_one_flow_overlap_on_its_links_and_credits_never_hold_it_back(capacity, latency, queue):
    """m equal packets of p bytes: the first takes the sum of p / c + latency, every further one p / c of the slowest link more.
    That holds for any latency: the credits cover what a link sends until the first credit is back."""
    m, p = 200, 10.0
    end = ends(capacity, [list(range(len(capacity)))], [m * p], chunk=p, latency=latency, queue=queue)
    expected = sum(p / c + latency for c in capacity) + (m - 1) * p / min(capacity)
    np.testing.assert_allclose(end, [expected], rtol=1e-9)


def test_the_last_packet_is_what_is_left_over():
    """25 bytes in packets of 10 over two links of 10 B/s: 10, 10 and 5 leave one at 1, 2, 2.5 s, the other at 2, 3, 3.5 s."""
    state = played([10, 10], [[0, 1]], [25], chunk=10)
    np.testing.assert_allclose(packets.finish(state), [3.5])
    assert packets.solves(state) == 6
    np.testing.assert_allclose(state.links["carried"], [25, 25])


@pytest.mark.parametrize("queue", packets.QUEUES)
@pytest.mark.parametrize(("rate", "weight"), [(7.0, 1.0), (7.0, 0.01), (7.0, 2.5), (1000.0, 3.0)])
def test_a_lane_takes_the_weight_times_the_bytes_of_every_packet(rate, weight, queue):
    """m packets of p bytes over a wire of 100 B/s with 3 s of latency, then a lane: a link of rate / weight B/s."""
    m, p = 50, 10.0
    state = played([100, rate], [[0, 1]], [m * p], weights=[[1, weight]], chunk=p, latency=[3, 0], queue=queue, n_wires=1)
    expected = p / 100 + 3 + p * weight / rate + (m - 1) * p * max(1 / 100, weight / rate)
    np.testing.assert_allclose(packets.finish(state), [expected], rtol=1e-9)
    np.testing.assert_allclose(state.links["carried"], [m * p, m * p * weight], rtol=1e-9)


@pytest.mark.parametrize("queue", packets.QUEUES)
def test_a_packet_spread_over_parallel_links_takes_their_mean_latency_and_the_time_of_one(queue):
    """1000 bytes, half over each of two links of 50 B/s with 2 and 4 s of latency, then over one of 200 B/s with 1 s: 10 + 10 s,
    and 5 s. Latency of shares passes at the end: 1 + 2 / 2 + 4 / 2."""
    weights = [[0.5, 0.5, 1]]
    end = ends([50, 50, 200], [[0, 1, 2]], [1000], weights=weights, chunk=1000, latency=[2, 4, 1], queue=queue)
    np.testing.assert_allclose(end, [25 + 4], rtol=1e-12)


# ---- several flows in the long run


def test_round_robin_gives_a_flow_what_another_cannot_use():
    """A crosses L1; B crosses L1 and L2; nine others cross L2; all links alike. L2 gives each of its ten flows 0.1 of itself. B
    cannot use more of L1: its credits for L1 are spent until L2 has sent a packet of it. The rest of L1, 0.9, is A's: max-min."""
    rates = steady_rates([1, 1], [[0], [0, 1], *[[1]] * 9], rounds=100, chunk=1.0)
    np.testing.assert_allclose(rates, [0.9, *[0.1] * 10], atol=3 / 1100)         # three packets in a window of 1,100


def test_fifo_lets_a_blocked_packet_block_those_behind_it():
    """The same flows, one queue per link. L2's queue is full, and a free place in it goes to what feeds it in turn: nine sources
    and L1, a tenth each. So L1 may send one packet of B in ten packet times. A and B put packets into L1's queue in turn, so
    they leave it in turn, and A's wait behind B's: A, too, gets 0.1 of L1, which idles for 0.8 of the time."""
    rates = steady_rates([1, 1], [[0], [0, 1], *[[1]] * 9], rounds=100, chunk=1.0, queue="fifo")
    np.testing.assert_allclose(rates, [0.1] * 11, atol=3 / 1100)


def test_fifo_without_a_full_link_beyond_shares_like_round_robin():
    """Three flows on one link: there is nothing to be blocked by."""
    for queue in packets.QUEUES:
        np.testing.assert_allclose(steady_rates([3], [[0]] * 3, rounds=50, chunk=1.0, queue=queue), 1.0, atol=3 / 150)


def test_fifo_treats_links_alike_and_not_flows():
    """Five flows come over L0, one starts at L1, and L1 is full: its places go in turn to L0 and to the source, so the five share
    one half. Round robin gives every flow a sixth."""
    routes = [[0, 1]] * 5 + [[1]]
    fifo = steady_rates([1, 1], routes, rounds=200, chunk=1.0, queue="fifo")
    np.testing.assert_allclose(fifo, [0.1] * 5 + [0.5], atol=3 / 1200)
    fair = steady_rates([1, 1], routes, rounds=200, chunk=1.0)
    np.testing.assert_allclose(fair, [1 / 6] * 6, atol=3 / 1200)


def test_rates_of_60_random_systems_settle_at_max_min():
    """Hahne 1991: round robin at every link and enough credits make the rates of greedy flows max-min fair. Four credits are
    enough on all of these; a window of W packets of the slowest flow tells its rate to some packets in W."""
    rounds = 300
    for seed in range(60):
        system = small_system(random.Random(seed))
        capacity, routes = system["capacity"], system["routes"]
        fair = max_min_rates([Fraction(c) for c in capacity], [dict.fromkeys(route, 1) for route in routes], [None] * len(routes))
        rates = steady_rates(capacity, routes, rounds=rounds, chunk=1.0)
        few_packets = 6.0 / (rounds * len(routes) / min(capacity))
        np.testing.assert_allclose(rates, np.array(fair, float), atol=few_packets, err_msg=f"seed {seed}")


def test_a_lane_is_shared_in_turns_and_so_by_flows_and_not_by_what_they_take_of_it():
    """Three flows over a lane of 12 /s that take 1, 2 and 3 of it per byte: a packet each in turn, so 2 B/s each. Where a port
    lets the third have 1 B/s only, the others have (12 - 3) / 3 each. That is what max-min fairness says, too."""
    rates = steady_rates([12], [[0]] * 3, rounds=50, chunk=1.0, weights=[[1], [2], [3]])
    np.testing.assert_allclose(rates, 2, atol=6 * 3 / 150)
    rates = steady_rates([12, 1], [[0], [0], [0, 1]], rounds=50, chunk=1.0, weights=[[1], [2], [3, 1]])
    np.testing.assert_allclose(rates, [3, 3, 1], atol=3 / 150)


def test_rates_of_60_random_systems_with_weights_settle_at_max_min():
    """On lanes, packets take times that differ by up to 12; four credits are enough on all of these, too. One packet more of
    another flow costs as many of the own as its weight is larger."""
    rounds = 300
    for seed in range(60):
        rng = random.Random(seed)
        system = weighted(rng, small_system(rng))
        capacity, routes, weights = system["capacity"], system["routes"], system["weights"]
        uses = [dict(zip(route, map(Fraction, row), strict=True)) for route, row in zip(routes, weights, strict=True)]
        fair = max_min_rates([Fraction(c) for c in capacity], uses, [None] * len(routes))
        rates = steady_rates(capacity, routes, rounds=rounds, chunk=1.0, weights=weights)
        heaviest = np.zeros(len(capacity))
        np.maximum.at(heaviest, np.concatenate(routes), np.concatenate(weights))
        ratio = np.array([max(heaviest[route] / row) for route, row in zip(routes, weights, strict=True)])
        few_packets = 6.0 * ratio / (rounds * len(routes) / min(capacity))
        assert (np.abs(rates - np.array(fair, float)) <= few_packets).all(), seed


# ---- agreement with the fluid network as packets shrink


def round_time(capacity, routes, weights=None):
    """The longest route's seconds per byte of packet if on each of its links every flow sends one: rounds end to end."""
    each = None if weights is None else [weight for row in weights for weight in row]
    taken = np.bincount([link for route in routes for link in route], each, minlength=len(capacity))
    return max(sum(taken[link] / capacity[link] for link in route) for route in routes)


def test_finish_times_with_weights_approach_the_fluid_ones_too():
    """Within 2 (CREDITS + 1) rounds along the way, where a round takes each flow's packet times its weight."""
    gaps = []
    for seed in range(60):
        rng = random.Random(seed)
        system = weighted(rng, small_system(rng))
        fluid = flow_times(**system)
        gaps.append([np.abs(ends(**system, chunk=chunk) - fluid).max() for chunk in (1024.0, 128.0, 16.0)])
        one_round = round_time(system["capacity"], system["routes"], system["weights"])
        for gap, chunk in zip(gaps[-1], (1024.0, 128.0, 16.0), strict=True):
            assert gap <= 2 * (packets.CREDITS + 1) * one_round * chunk, (seed, chunk)
    at_1024, at_128, at_16 = np.sum(gaps, axis=0)
    assert at_16 < at_128 / 3 < at_1024 / 9


def test_finish_times_approach_the_fluid_ones_in_proportion_to_the_packet():
    """On every link of its way a flow may be ahead, or be held back, by the packets that it has credits for and the one on the
    link, and each of them waits for one round: 2 (CREDITS + 1) rounds along the way, whatever the packet. (The largest of 400
    such systems was at 8.3 of these 10.) Packets of 1 KiB down to 4 B, routes of one to six links, flows of 1 to 100 KiB released
    at different times. And the sum of all differences falls with the packet."""
    gaps = []
    for seed in range(60):
        system = small_system(random.Random(seed))
        fluid = flow_times(**system)
        gaps.append([np.abs(ends(**system, chunk=chunk) - fluid).max() for chunk in (1024.0, 128.0, 16.0, 4.0)])
        one_round = round_time(system["capacity"], system["routes"])
        for gap, chunk in zip(gaps[-1], (1024.0, 128.0, 16.0, 4.0), strict=True):
            assert gap <= 2 * (packets.CREDITS + 1) * one_round * chunk, (seed, chunk)
    _, at_128, at_16, at_4 = np.sum(gaps, axis=0)
    assert at_16 < at_128 / 3
    assert at_4 == pytest.approx(at_16 / 4, rel=0.2)


@pytest.mark.parametrize("topology", [{}, {"oversubscription": 2.0}, {"oversubscription": 2.0, "rails": False}])
def test_exchanges_on_a_cluster_approach_the_fluid_ones(topology):
    """Skewed bytes, sources that enter at different times; flat, and 2:1 leaves per rail and per node under a spine."""
    cluster = load_cluster("ideal_rail", nodes=2, gpus_per_node=4, nic=topology)
    rng = np.random.default_rng(5)
    nbytes = rng.lognormal(13, 1, (8, 8)) * ~np.eye(8, dtype=bool)
    release = rng.exponential(20e-6, 8)
    fluid = transfer(cluster, nbytes, release=release)
    gaps = []
    for kib in (64, 16, 4, 1):
        packed = transfer(cluster, nbytes, network="packet", release=release, chunk=kib * 1024.0)
        gaps.append(np.nanmax(np.abs(packed.finish - fluid.finish)) / fluid.makespan)
        assert packed.makespan >= packed.bound
        np.testing.assert_allclose(packed.link_bytes, fluid.link_bytes)
    assert gaps[-1] < 0.01
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 8


def test_a_uniform_exchange_takes_the_fluid_time_and_one_round():
    """All pairs alike: each NIC sends to 8 GPUs in turn, at full rate, and all in the same order. So eight packets for one GPU
    come together, and the last of them waits for the other seven: one round of eight packets more than the bytes take."""
    cluster, chunk = load_cluster("ideal_rail", nodes=2), 4096.0
    nbytes = 2.0**20 * ~np.eye(16, dtype=bool)
    packed = transfer(cluster, nbytes, network="packet", chunk=chunk)
    fluid = transfer(cluster, nbytes)
    assert fluid.makespan == pytest.approx(8 * 2**20 / NIC)
    assert packed.makespan == pytest.approx(fluid.makespan + 8 * chunk / NIC, rel=1e-9)


# ---- one queue per link on a cluster


def test_fifo_slows_a_whole_node_down_for_the_sake_of_one_busy_receiver():
    """GPU 0 sends the same to GPU 8, to which 8..15's neighbours 1..7 send too, and to GPU 9, to which nobody else does. Its two
    flows leave one queue in turn; so the one to GPU 9 cannot be faster than an eighth of a NIC while GPU 8's is full. Round
    robin gives it seven eighths."""
    cluster, b = load_cluster("ideal_rail", nodes=2), 2.0**24
    nbytes = np.zeros((16, 16))
    nbytes[:8, 8], nbytes[0, 9] = b, b
    fair = transfer(cluster, nbytes, network="packet", chunk=4096.0).finish[0, 9]
    blocked = transfer(cluster, nbytes, network="packet", chunk=4096.0, queue="fifo").finish[0, 9]
    assert fair == pytest.approx(b / (NIC * 7 / 8), rel=0.01)
    assert blocked == pytest.approx(b / (NIC / 8), rel=0.01)
