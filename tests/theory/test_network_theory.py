"""Closed forms of regular exchanges: what the solver gives must be what one line of algebra gives."""

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.network.pairs import transfer

NVLINK, NIC = 450e9, 50e9


def uniform(n, nbytes):
    return np.full((n, n), nbytes)


@pytest.mark.parametrize("pair_bytes", [1.0, 14336.0, 2.0**30])
@pytest.mark.parametrize("nodes", [2, 3, 4, 8])
def test_uniform_all_to_all_ends_with_the_busier_of_nvlink_and_nic(nodes, pair_bytes):
    """Each GPU sends p bytes to 7 peers over NVLink and to N - 8 over its NIC; all of a kind are equal and end together."""
    cluster = load_cluster("ideal_rail", nodes=nodes)
    n = cluster.n_gpus
    inside, outside = 7 * pair_bytes / NVLINK, (n - 8) * pair_bytes / NIC
    t = transfer(cluster, uniform(n, pair_bytes))
    assert t.makespan == pytest.approx(max(inside, outside), rel=1e-9)
    assert t.bound == pytest.approx(max(inside, outside), rel=1e-9)
    same = cluster.node_of[:, None] == cluster.node_of
    np.testing.assert_allclose(t.finish[same & ~np.eye(n, dtype=bool)], inside, rtol=1e-9)
    np.testing.assert_allclose(t.finish[~same], outside, rtol=1e-9)
    assert (np.diagonal(t.finish) == 0).all()
    assert t.solves <= 6, "equal flows end together"


@pytest.mark.parametrize("network", ["fluid", "bound"])
def test_uniform_all_to_all_on_one_node_needs_only_nvlink(network):
    t = transfer(load_cluster("ideal_rail", nodes=1), uniform(8, 1e9), network=network)
    assert t.makespan == pytest.approx(7e9 / NVLINK, rel=1e-9)


def test_uniform_all_to_all_in_one_nvlink_domain_with_latency():
    cluster = load_cluster("gb200_nvl72")
    t = transfer(cluster, uniform(72, 1e6), release=1e-3)
    latency = cluster.latency[:2].sum() if cluster.links[1].kind == "nvlink_down" else 2 * cluster.latency[0]
    assert t.makespan == pytest.approx(1e-3 + latency + 71e6 / cluster.capacity[0], rel=1e-9)
    assert t.bound == pytest.approx(t.makespan, rel=1e-9)


@pytest.mark.parametrize("oversubscription", [2, 4])
def test_uniform_all_to_all_under_one_leaf_per_node(oversubscription):
    """All that leaves a node crosses its leaf's uplinks, of capacity 8 NIC / oversubscription: 8 (N - 8) p bytes."""
    cluster = load_cluster("ideal_rail", nodes=4, nic={"oversubscription": float(oversubscription), "rails": False})
    t = transfer(cluster, uniform(32, 1e6))
    np.testing.assert_allclose(t.finish[0, 8:], oversubscription * 24e6 / NIC, rtol=1e-9)
    assert t.bound == pytest.approx(oversubscription * 24e6 / NIC, rel=1e-9)


@pytest.mark.parametrize("oversubscription", [2.0, 8.0])
def test_uniform_all_to_all_over_rails_under_a_spine(oversubscription):
    """One leaf per rail, R nodes. A GPU sends p to the R - 1 others of its rail, under the leaf, and to 7 (R - 1) on other rails,
    across the spine: with R GPUs per leaf its share of the uplinks is NIC / oversubscription, which takes
    o 7 (R - 1) p / NIC; the NIC itself is busy for 8 (R - 1) p / NIC. From o = 8/7 on the uplinks decide, and flows within a
    rail, which have the rest of the NIC to themselves, end as soon as both kinds allow."""
    nodes, p = 4, 1e6
    cluster = load_cluster("ideal_rail", nodes=nodes, nic={"oversubscription": oversubscription})
    t = transfer(cluster, uniform(32, p))
    across = oversubscription * 7 * (nodes - 1) * p / NIC
    spine_rate = NIC / oversubscription / (7 * (nodes - 1))         # per flow, from the start to the end
    along = p / ((NIC - NIC / oversubscription) / (nodes - 1))      # what the NIC has left, by the flows of its rail
    assert NIC / (8 * (nodes - 1)) > spine_rate, "the uplinks fill first"
    assert t.finish[0, 9] == pytest.approx(across, rel=1e-9)
    assert t.finish[0, 8] == pytest.approx(along, rel=1e-9)
    assert t.bound == pytest.approx(across, rel=1e-9)


def test_a_non_blocking_network_is_the_limit_of_an_oversubscribed_one():
    """Leaves that have as much above as below cannot fill before the NICs do: the same finish times."""
    rng = np.random.default_rng(0)
    nbytes = rng.integers(0, 1 << 24, (32, 32)).astype(float)
    flat = transfer(load_cluster("ideal_rail", nodes=4), nbytes)
    leaves = transfer(load_cluster("ideal_rail", nodes=4, nic={"oversubscription": 1 + 1e-13}), nbytes)
    np.testing.assert_allclose(leaves.finish, flat.finish, rtol=1e-9)


def test_one_hot_receiver_is_as_slow_as_its_port():
    """Everybody sends p to GPU 0: seven over its NVLink, the rest over its NIC, each kind shared evenly."""
    nbytes = np.zeros((32, 32))
    nbytes[1:, 0] = 1e6
    t = transfer(load_cluster("ideal_rail", nodes=4), nbytes)
    np.testing.assert_allclose(t.finish[1:8, 0], 7e6 / NVLINK, rtol=1e-9)
    np.testing.assert_allclose(t.finish[8:, 0], 24e6 / NIC, rtol=1e-9)


def test_staggered_senders_to_one_port_are_a_queue_without_idle_time():
    """Two senders to one port: 4 s of work at 0 and 2 s of work at 1. Shared from 1 s on: 5 s and 6 s."""
    nbytes = np.zeros((16, 16))
    nbytes[8, 0], nbytes[9, 0] = 4 * NIC, 2 * NIC
    release = np.zeros(16)
    release[9] = 1.0
    t = transfer(load_cluster("ideal_rail", nodes=2), nbytes, release=release)
    np.testing.assert_allclose(t.finish[[8, 9], 0], [6.0, 5.0], rtol=1e-9)
    assert t.bound == pytest.approx(6.0, rel=1e-9)
