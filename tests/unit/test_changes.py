"""Links whose capacity changes while a run is played: what they can carry by when, and what a user may write of them."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from clustersim import InputError, flow_times, load_cluster, transfer
from clustersim.network import bound, fluid, packet
from clustersim.network.changes import Changes, earliest_end, read_changes
from clustersim.types import independent
from tests.packet_systems import ends

RAIL = load_cluster("ideal_rail", nodes=2)          # NICs of 50 GB/s, no latency


def changes(*rows):
    time, link, capacity = zip(*rows, strict=True)
    return Changes(time=np.array(time, float), link=np.array(link), capacity=np.array(capacity, float))


def test_what_a_link_carries_is_the_integral_of_its_capacity():
    """10 bytes/s for 2 s are 20 bytes, then nothing until 5 s, then 10 more at 5 bytes/s take 2 s."""
    come = changes((2, 0, 0), (5, 0, 5))
    assert earliest_end(10.0, come, 0, np.array([0.0]), np.array([30.0])) == 7.0
    assert earliest_end(10.0, come, 0, np.array([0.0]), np.array([20.0])) == 2.0
    assert earliest_end(10.0, come, 0, np.array([3.0]), np.array([30.0])) == 11.0
    assert earliest_end(10.0, come, 1, np.array([3.0]), np.array([30.0])) == 6.0, "changes of other links"
    assert earliest_end(10.0, changes((2, 0, 0)), 0, np.array([0.0]), np.array([30.0])) == np.inf


@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50)), min_size=1, max_size=8),
)
def test_one_link_ends_exactly_then(steps, flows):
    """Sharing wastes nothing on a single link, so its last flow ends when the integral says."""
    rows = [(time, 0, capacity) for time, capacity in sorted(steps)] + [(200, 0, 7)]
    nbytes, release = (np.array(column, float) for column in zip(*flows, strict=True))
    ends = flow_times([10.0], [[0]] * len(flows), nbytes, release, changes=rows)
    assert ends.max() == pytest.approx(earliest_end(10.0, changes(*rows), 0, release, nbytes), rel=1e-9)


@pytest.mark.parametrize("network", [fluid, bound])
def test_a_nic_that_is_down_for_a_second_delays_what_crosses_it_by_a_second(network):
    env = simpy.Environment()
    given = [{"at": "250ms", "link": "nic_up 0", "share": 0}, {"at": "1.25s", "link": "nic_up 0", "share": 1}]
    exchange = network(env, RAIL, changes=given).exchange(independent(np.array([0]), np.array([8]), np.array([50e9])))
    for me in range(RAIL.n_gpus):
        exchange.enter(me)
    env.run()
    assert exchange.finish[0] == pytest.approx(2.0)
    assert exchange.bound()[0] == pytest.approx(2.0)


@pytest.mark.parametrize("queue", ["round_robin", "fifo"])
def test_in_packets_it_is_the_same_and_a_packet_more(queue):
    """50 GB in packets of 0.1 GB: the last has left the NIC at 2 s and takes 2 ms over the one that receives it."""
    env = simpy.Environment()
    given = [{"at": "250ms", "link": "nic_up 0", "share": 0}, {"at": "1.25s", "link": "nic_up 0", "share": 1}]
    exchange = packet(env, RAIL, chunk=1e8, queue=queue, changes=given).exchange(
        independent(np.array([0]), np.array([8]), np.array([50e9]))
    )
    for me in range(RAIL.n_gpus):
        exchange.enter(me)
    env.run()
    assert exchange.finish[0] == pytest.approx(2.002)
    assert exchange.bound()[0] == pytest.approx(2.0)


@pytest.mark.parametrize("queue", ["round_robin", "fifo"])
@given(
    steps=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), min_size=1, max_size=8),
    flows=st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 50)), min_size=1, max_size=8),
    chunk=st.sampled_from([1.0, 7.0, 1000.0]),
)
def test_one_link_of_packets_ends_exactly_then(queue, steps, flows, chunk):
    """A link that has packets sends; so its last one has left when the integral says, however it is cut."""
    rows = [(time, 0, capacity) for time, capacity in sorted(steps)] + [(200, 0, 7)]
    nbytes, release = (np.array(column, float) for column in zip(*flows, strict=True))
    landed = ends([10.0], [[0]] * len(flows), nbytes, release, chunk=chunk, queue=queue, changes=rows)
    assert landed.max() == pytest.approx(earliest_end(10.0, changes(*sorted(rows)), 0, release, nbytes), rel=1e-9)


def test_packets_approach_fluid_as_they_shrink_while_links_change():
    """Ten flows on four links, one of which stands still for a while: within ten rounds of packets along the longest route."""
    rng = np.random.default_rng(3)
    capacity, routes = np.array([4.0, 5, 6, 7]), [rng.permutation(4)[: rng.integers(1, 4)].tolist() for _ in range(10)]
    nbytes, come = rng.uniform(20, 60, 10), [(10.0, 0, 0.0), (20.0, 0, 9.0), (25.0, 2, 1.0), (60.0, 2, 6.0)]
    exact = flow_times(capacity, routes, nbytes, 0.0, changes=come)
    for chunk in (1.0, 0.1):
        slowest = 1.0                                       # bytes/s that any link has, but for when it has none
        apart = np.abs(ends(capacity, routes, nbytes, chunk=chunk, changes=come) - exact).max()
        assert apart <= 10 * len(routes) * chunk / slowest


def test_a_packet_network_in_which_a_link_stays_down_is_refused():
    with pytest.raises(InputError, match="link 1 stays down"):
        ends([1.0, 1.0], [[0], [1]], [1.0, 1.0], chunk=1.0, changes=[(1.0, 0, 2.0), (2.0, 1, 0.0)])


def test_no_exchange_takes_longer_than_the_loads_along_a_route():
    """One flow of 50 GB over a NIC's two links of 50 GB/s: its own two loads, one after the other; it takes one of them."""
    nbytes = np.zeros((16, 16))
    nbytes[0, 8] = 50e9
    t = transfer(RAIL, nbytes)
    assert (t.bound, t.makespan, t.upper_bound) == (1.0, 1.0, 2.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        t = transfer(RAIL, rng.pareto(1.1, (16, 16)) * 1e6, release=rng.random(16) * 1e-3)
        assert t.bound * (1 - 1e-9) <= t.makespan <= t.upper_bound * (1 + 1e-9)


def test_a_pattern_names_many_links():
    read = read_changes(RAIL, [{"at": "1ms", "link": "nic_* 3", "share": 0.5}])
    assert {RAIL.links[link].name for link in read.link} == {"nic_up 3", "nic_down 3"}
    assert read.capacity.tolist() == [25e9, 25e9]
    assert read_changes(RAIL, []) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": "1ms", "link": "nic_up 99", "share": 1}, "network.changes[0].link=nic_up 99: ideal_rail has no such link"),
        ({"at": 1, "link": "nic_up 0", "share": 1}, "network.changes[0].at = 1: expected a time"),
        ({"at": "1ms", "link": "nic_up 0", "share": -1}, "network.changes[0].share=-1: must be"),
        ({"at": "1ms", "link": "nic_up 0", "share": "half"}, "network.changes[0].share=half: must be"),
        ({"at": "1ms", "link": "nic_up 0"}, "must have at, link, share"),
        ("nic_up 0", "must have at, link, share"),
        ({"at": "1ms", "link": "nic_up 0", "share": 0}, "nic_up 0 stays down"),
    ],
)
def test_a_change_that_cannot_be(change, said):
    with pytest.raises(InputError) as caught:
        read_changes(RAIL, [change])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changes_are_a_list():
    with pytest.raises(InputError, match="must be a list"):
        read_changes(RAIL, "nic_up 0")
