"""Links whose capacity changes while a run is played: what they can carry by when, and what a user may write of them."""

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from clustersim import InputError, flow_times, load_cluster, transfer
from clustersim.network import bound, fluid
from clustersim.network.changes import Changes, earliest_end, read_changes
from clustersim.types import independent

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
