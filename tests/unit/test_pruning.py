"""Links that cannot fill up are left out, and nothing but the work changes."""

from dataclasses import replace

import numpy as np
import pytest
import simpy

from clustersim import load_cluster, transfer
from clustersim.lanes import equip, lanes_from
from clustersim.network import drains, fabric, fluid, packet, pruning
from clustersim.network.pruning import never_full
from clustersim.types import Routes, independent
from tests.matrices import skewed
from tests.walks import pairs_of


def kinds_left_out(cluster):
    routes = cluster.routes(*pairs_of(cluster))
    idle = never_full(cluster.capacity, routes)
    assert not idle[routes.links[routes.start[:-1]]].any(), "ports stay"
    assert not idle[routes.links[routes.start[1:] - 1]].any(), "ports stay"
    used = np.zeros(idle.size, bool)
    used[routes.links] = True
    return {link.kind for link in cluster.links if used[link.id] and idle[link.id]}


@pytest.mark.parametrize("oversubscription", [1.0, 1.5])
def test_uplinks_are_left_out_where_they_carry_what_all_nics_do(oversubscription):
    """A leaf's uplink has the rate of its NICs together / oversubscription: at 1 it cannot limit them, above it can."""
    fabric = {"name": "leaf_spine", "spines": 1}
    cluster = load_cluster("ideal_rail", nodes=4, nic={"oversubscription": oversubscription}, fabric=fabric)
    assert kinds_left_out(cluster) == ({"leaf_up", "leaf_down"} if oversubscription == 1 else set())


def test_a_spread_over_many_spines_takes_of_each_link_no_more_than_one_link_of_their_sum():
    fabric = {"name": "leaf_spine", "spines": 4}
    sprayed, hashed = (load_cluster("ideal_rail", nodes=8, fabric=fabric, routing={"name": name}) for name in ("spray", "ecmp"))
    assert kinds_left_out(sprayed) == {"leaf_up", "leaf_down"}
    assert not kinds_left_out(hashed), "pairs that collide fill a link, whatever its share of the whole"


@pytest.mark.parametrize("resolution", [0.0, 0.01])
def test_times_and_bytes_are_those_with_all_links(resolution, monkeypatch):
    cluster = load_cluster("ideal_rail", nodes=4, fabric={"name": "leaf_spine", "spines": 4}, routing={"name": "spray"})
    nbytes = skewed(32)
    few = transfer(cluster, nbytes, resolution=resolution)
    monkeypatch.setattr(pruning, "never_full", lambda capacity, routes: np.zeros(capacity.size, bool))
    every = transfer(cluster, nbytes, resolution=resolution)
    np.testing.assert_allclose(few.finish, every.finish, rtol=1e-9, atol=resolution * every.bound)
    np.testing.assert_array_equal(few.link_bytes, every.link_bytes)
    assert few.link_bytes[[link.id for link in cluster.links if link.kind == "leaf_up"]].all(), "bytes of links left out count"


def random_system(rng):
    """Ports of different rates, one or two inner links on each way, any weights; inner links wide and narrow."""
    n_ports, n_inner, n_flows = 6, 4, 40
    links, weights = [], []
    for _ in range(n_flows):
        inner = rng.choice(n_inner, rng.integers(0, 3), replace=False) + 2 * n_ports
        links.append([rng.integers(n_ports), *inner, n_ports + rng.integers(n_ports)])
        weights.append(rng.choice([1.0, 0.5, 0.25], len(links[-1])))
    start = np.concatenate(([0], np.cumsum([len(way) for way in links])))
    capacity = np.concatenate((rng.integers(1, 5, 2 * n_ports), rng.integers(4, 24, n_inner))).astype(float)
    routes = Routes(start=start, links=np.concatenate(links), weights=np.concatenate(weights), latency=np.zeros(n_flows))
    return capacity, routes, rng.integers(1, 50, n_flows).astype(float), rng.choice([0.0, 3.0, 7.5], n_flows)


def test_of_200_random_systems_half_have_links_to_leave_out_and_none_a_flow_that_notices(monkeypatch):
    left_out = 0
    for seed in range(200):
        system = random_system(np.random.default_rng(seed))
        left_out += never_full(*system[:2]).any()
        few, _ = drains.drain_times(*system, 0.0, 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(pruning, "never_full", lambda capacity, routes: np.zeros(capacity.size, bool))
            every, _ = drains.drain_times(*system, 0.0, 0.0)
        np.testing.assert_allclose(few, every, rtol=1e-9, err_msg=f"seed {seed}")
    assert 60 <= left_out <= 180


# ---- on the event loop, where exchanges come later


def on_loop(cluster, exchanges):
    """The finish times of exchanges that overlap, their tables' bytes, and the hops that the solver was given."""
    env = simpy.Environment()
    net = fluid(env, cluster)
    opened = [net.exchange(transfers) for transfers in exchanges]
    rng = np.random.default_rng(7)
    for exchange in opened:
        for gpu, at in enumerate(rng.exponential(20e-6, cluster.n_gpus)):
            env.timeout(at).callbacks.append(lambda _, gpu=gpu, exchange=exchange: exchange.enter(gpu))
    hops = []
    while env.peek() < np.inf:
        env.step()
        hops.append(net._state.hops.size)
    return np.concatenate([exchange.finish for exchange in opened]), [exchange.link_bytes() for exchange in opened], max(hops)


LEAVES = {"name": "leaf_spine", "spines": 4}


@pytest.mark.parametrize("routing", ["spray", "ecmp", "pxn"])
@pytest.mark.parametrize("oversubscription", [1.0, 2.0])
def test_exchanges_on_the_loop_end_alike_with_and_without(oversubscription, routing, monkeypatch):
    """Two that overlap, the first between a few GPUs, the second among all; SMs that copy; NICs inside nodes."""
    plain = load_cluster(
        "ideal_rail", nodes=4, nic={"oversubscription": oversubscription}, fabric=LEAVES, routing={"name": routing}
    )
    cluster = equip(plain, {"copy": 60e9})
    rng = np.random.default_rng(3)
    src, dst = pairs_of(cluster)
    few = rng.choice(src.size, 60, replace=False)
    exchanges = [
        replace(independent(src[few], dst[few], rng.lognormal(15, 1, 60)), by_nic=rng.random(60) < 0.5),
        replace(
            independent(src, dst, rng.lognormal(13, 1, src.size)),
            lanes=lanes_from((0, src, rng.uniform(0.5, 2, src.size)), n_gpus=cluster.n_gpus),
        ),
    ]
    ends, nbytes, hops = on_loop(cluster, exchanges)
    monkeypatch.setattr(fabric, "never_full_between_any", lambda cluster: None)
    all_ends, all_nbytes, all_hops = on_loop(cluster, exchanges)
    np.testing.assert_allclose(ends, all_ends, rtol=1e-9)
    np.testing.assert_array_equal(nbytes, all_nbytes)
    assert (hops < all_hops) == (oversubscription == 1 and routing == "spray")


def test_links_are_only_left_out_on_the_loop_where_every_pair_is_known(monkeypatch):
    spread = {"nodes": 4, "fabric": LEAVES, "routing": {"name": "spray"}}
    cluster = load_cluster("ideal_rail", **spread)
    idle = pruning.never_full_between_any(cluster)
    assert {link.kind for link in cluster.links if idle[link.id]} == {"leaf_up", "leaf_down"}
    monkeypatch.setattr(pruning, "MOST_GPUS", 31)
    assert pruning.never_full_between_any(cluster) is None
    monkeypatch.undo()
    users = replace(cluster, policy=lambda wires, src, dst: cluster.policy(wires, src, dst))
    assert pruning.never_full_between_any(users) is None, "a policy of the user's may not see each pair by itself"
    changes = [{"at": "1ms", "link": "nic_up 3", "share": 0.5}]
    assert fluid(simpy.Environment(), cluster, changes=changes)._idle is None
    assert packet(simpy.Environment(), cluster)._idle is None, "a packet takes its time on every link"
