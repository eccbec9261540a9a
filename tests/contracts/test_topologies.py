"""One contract for every machine that ships, under every routing policy that it allows."""

import numpy as np
import pytest

from clustersim import InputError, load_cluster, routes
from clustersim.network import measures
from clustersim.places import data_folder, options
from tests.walks import check_routes, pairs_of

MACHINES = [path.stem for path in sorted(data_folder("topologies").glob("*.yaml"))]
REQUIRED = {
    "a100_sxm", "h100_sxm", "h800_sxm", "h200_sxm", "b200_hgx", "b300_hgx", "gb200_nvl72", "gb300_nvl72", "h100_2to1",
    "rail_only", "dragonfly", "ideal_rail", "fat_tree", "multi_plane", "a100_p4d", "b200_superpod", "hand_drawn",
}  # fmt: skip
SIZED = ("hand_drawn", "b200_superpod", "dragonfly", "fat_tree")        # counts that fit one number of nodes, or multiples
POLICIES = ("shortest", "ecmp", "spray", "pxn")
NEED_A_RELAY = ("rail_only", "multi_plane")     # their rails or planes meet in the nodes only


def test_the_machines_that_are_promised_ship():
    assert set(MACHINES) >= REQUIRED
    assert options(data_folder("topologies")).keys() == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_routes_every_byte_from_its_source_to_its_destination(name):
    cluster = load_cluster(name)
    src, dst = pairs_of(cluster)
    assert set(src) == set(dst) == set(range(cluster.n_gpus))
    ways = cluster.routes(src, dst)
    check_routes(cluster, src, dst, ways)
    kinds = np.array([link.kind for link in cluster.links])[ways.links]
    same = np.repeat(cluster.node_of[src] == cluster.node_of[dst], np.diff(ways.start))
    assert set(kinds[same]) == {"nvlink_up", "nvlink_down"}, "GPUs of one node leave NVLink"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_takes_every_policy_or_says_that_it_needs_pxn(name, policy):
    if name in NEED_A_RELAY and policy != "pxn":
        with pytest.raises(InputError, match=r"cannot be reached from GPU 0: only by relaying .*routing\.name=pxn"):
            load_cluster(name, routing={"name": policy, "then": None, "seed": None})
        return
    cluster = load_cluster(name, routing={"name": policy, "then": None, "seed": None})
    src, dst = pairs_of(cluster, 1500)
    check_routes(cluster, src, dst, cluster.routes(src, dst))


@pytest.mark.parametrize("name", sorted({*MACHINES} - {*NEED_A_RELAY}))
def test_many_pairs_at_once_take_the_ways_that_few_take(name, monkeypatch):
    cluster = load_cluster(name, routing={"name": "shortest", "then": None, "seed": None})
    src, dst = pairs_of(cluster, 1500)
    few, many = (monkeypatch.setattr(routes, "MANY", most) or cluster.routes(src, dst) for most in (10**9, 0))
    for column in ("start", "links", "weights"):
        np.testing.assert_array_equal(getattr(many, column), getattr(few, column), err_msg=column)
    np.testing.assert_allclose(many.latency, few.latency, rtol=1e-12)


@pytest.mark.parametrize("name", NEED_A_RELAY)
def test_many_pairs_at_once_are_refused_where_one_is(name, monkeypatch):
    monkeypatch.setattr(routes, "MANY", 0)
    cluster = load_cluster(name)
    with pytest.raises(InputError, match=r"cannot be reached from GPU 0: only by relaying"):
        routes.shortest(cluster.wires, *pairs_of(cluster))


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_can_be_measured(name):
    cluster = load_cluster(name)
    bisection, whole = measures.bisection_bandwidth(cluster), measures.all_to_all(cluster)
    ports = {kind: sum(link.capacity for link in links) for kind, links in measures.by_kind(cluster).items()}
    halves = "nic_up" if cluster.n_nodes > 1 else "nvlink_up"
    assert 0 < bisection <= ports[halves] * (cluster.n_nodes // 2 / cluster.n_nodes if cluster.n_nodes > 1 else 0.5) * (1 + 1e-9)
    assert all(ratio > 0 for ratio in measures.oversubscription(cluster).values())
    assert 2 <= whole.hops <= 6
    assert all(ratio >= 1 - 1e-9 for ratio in measures.collisions(cluster, whole.link_bytes).values())
    # no machine sends more than its ports: the bytes of one GPU over its NVLink and NIC together
    assert whole.gpu_bytes_per_s <= (ports["nvlink_up"] + ports.get("nic_up", 0)) / cluster.n_gpus * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in MACHINES if name not in SIZED])
@pytest.mark.parametrize("nodes", [4, 16])
def test_machines_that_are_not_bound_to_a_size_can_be_made_smaller_and_larger(name, nodes):
    cluster = load_cluster(name, nodes=nodes)
    src, dst = pairs_of(cluster, 500)
    check_routes(cluster, src, dst, cluster.routes(src, dst))
