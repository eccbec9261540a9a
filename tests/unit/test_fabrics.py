"""Every fabric by hand: how many links of which rate, which route, how far, what crosses the middle, how oversubscribed."""

import networkx as nx
import numpy as np
import pytest

from clustersim import InputError, load_cluster
from clustersim.network.measures import all_to_all, bisection_bandwidth, by_kind, diameter, oversubscription
from tests.walks import check_routes, pairs_of

NIC, NVLINK = 50e9, 450e9       # bytes/s of ideal_rail's ports


def ideal(fabric, nodes=4, routing="shortest", **nic):
    """ideal_rail with a fabric behind its NICs."""
    return load_cluster("ideal_rail", nodes=nodes, fabric=fabric, routing={"name": routing}, nic=nic)


def rates(cluster):
    """kind -> (number, rate of each)."""
    return {kind: (len(links), *{link.capacity for link in links}) for kind, links in by_kind(cluster).items()}


def names(cluster, src, dst):
    routes = cluster.routes(np.array([src]), np.array([dst]))
    return [cluster.links[link].name for link in routes.links]


# ---- leaf and spine


def test_no_fabric_is_a_crossbar_or_with_oversubscription_leaves_and_one_spine():
    assert rates(load_cluster("ideal_rail", nodes=4)) == rates(ideal({"name": "crossbar"}))
    two = load_cluster("ideal_rail", nodes=4, nic={"oversubscription": 2.0})
    same = ideal({"name": "leaf_spine", "spines": 1}, oversubscription=2.0)
    assert [link.name for link in two.links] == [link.name for link in same.links]
    np.testing.assert_array_equal(two.capacity, same.capacity)


def test_a_non_blocking_leaf_and_spine_has_links():
    """4 nodes of 8 on rails: a leaf has 4 NICs, so its uplink to each of 2 spines carries 4 x 50 / 2 = 100 GB/s."""
    cluster = ideal({"name": "leaf_spine", "spines": 2})
    assert rates(cluster) == {
        "nvlink_up": (32, NVLINK), "nvlink_down": (32, NVLINK), "nic_up": (32, NIC), "nic_down": (32, NIC),
        "leaf_up": (16, 100e9), "leaf_down": (16, 100e9),
    }  # fmt: skip
    assert names(cluster, 0, 8) == ["nic_up 0", "nic_down 8"]
    assert names(cluster, 0, 9) == ["nic_up 0", "leaf_up 0.0", "leaf_down 1.0", "nic_down 9"]
    assert oversubscription(cluster) == {"leaf": 1.0}
    assert bisection_bandwidth(cluster) == pytest.approx(16 * NIC)
    assert diameter(cluster) == 4


def test_leaves_of_some_nodes_each():
    """On rails 2 nodes to a leaf make 2 sets of 8 leaves with 2 NICs each; without rails 2 leaves of 16 NICs."""
    rails = ideal({"name": "leaf_spine", "spines": 2, "nodes_per_leaf": 2})
    assert rates(rails)["leaf_up"] == (32, 2 * NIC / 2)
    assert names(rails, 3, 11) == ["nic_up 3", "nic_down 11"]           # one leaf has rail 3 of nodes 0 and 1
    assert names(rails, 3, 19) == ["nic_up 3", "leaf_up 3.0", "leaf_down 11.0", "nic_down 19"]      # another that of 2 and 3
    blocks = ideal({"name": "leaf_spine", "spines": 2, "nodes_per_leaf": 2}, rails=False, oversubscription=4)
    assert rates(blocks)["leaf_up"] == (4, 16 * NIC / 4 / 2)
    assert oversubscription(blocks) == {"leaf": 4.0}
    assert bisection_bandwidth(blocks) == pytest.approx(16 * NIC / 4)       # nodes 0, 1 are one leaf: its uplinks limit
    assert bisection_bandwidth(rails) == pytest.approx(16 * NIC)


def test_a_number_of_rails_wraps_around_the_nics_of_a_node():
    """4 rails for 8 NICs: NIC 1 and NIC 5 of every node share leaf 1."""
    cluster = ideal({"name": "leaf_spine", "spines": 1}, rails=4)
    assert rates(cluster)["leaf_up"] == (4, 8 * NIC)
    assert names(cluster, 1, 13) == ["nic_up 1", "nic_down 13"]
    assert cluster.wires.rail_of[:9].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_the_superpod_has_the_switches_of_nvidias_table():
    """DGX SuperPOD B200 reference architecture, 2 scalable units: 64 nodes, 16 leaves, 8 spines; 512 wires of 50 GB/s up."""
    cluster = load_cluster("b200_superpod")
    tiers = [v.split()[0] for v in cluster.graph if isinstance(v, str)]
    assert (tiers.count("leaf"), tiers.count("spine")) == (16, 8)
    assert sum(link.capacity for link in by_kind(cluster)["leaf_up"]) == pytest.approx(512 * 50e9)


# ---- rails alone


def test_rail_only_has_no_spine_and_is_crossed_by_relaying():
    cluster = ideal({"name": "rail_only"}, routing="pxn")
    assert rates(cluster).keys() == {"nvlink_up", "nvlink_down", "nic_up", "nic_down"}
    assert [v for v in cluster.graph if isinstance(v, str) and v.startswith("leaf")] == [f"leaf {i}" for i in range(8)]
    assert names(cluster, 0, 8) == ["nic_up 0", "nic_down 8"]
    assert names(cluster, 0, 13) == ["nvlink_up 0", "nvlink_down 5", "nic_up 5", "nic_down 13"]
    assert names(cluster, 0, 5) == ["nvlink_up 0", "nvlink_down 5"]
    assert diameter(cluster) == 4
    assert oversubscription(cluster) == {}
    assert bisection_bandwidth(cluster) == pytest.approx(16 * NIC)


# ---- fat tree


def test_a_k_ary_fat_tree():
    """k = 4: 4 pods of 2 leaves and 2 spines, 4 cores, 16 hosts, every link as fast as a NIC (Al-Fares et al.)."""
    cluster = ideal({"name": "fat_tree", "k": 4}, nodes=2, rails=False)
    tiers = [v.split()[0] for v in cluster.graph if isinstance(v, str)]
    assert [tiers.count(t) for t in ("leaf", "spine", "core")] == [8, 8, 4]
    assert rates(cluster)["leaf_up"] == rates(cluster)["leaf_down"] == (16, NIC)
    assert rates(cluster)["spine_up"] == rates(cluster)["spine_down"] == (16, NIC)
    assert oversubscription(cluster) == {"leaf": 1.0, "spine": 1.0}
    assert bisection_bandwidth(cluster) == pytest.approx(8 * NIC)
    assert diameter(cluster) == 6
    assert names(cluster, 0, 8) == [
        "nic_up 0", "leaf_up 0.0.0", "spine_up 0.0.0", "spine_down 2.0.0", "leaf_down 2.0.0", "nic_down 8",
    ]  # fmt: skip


def test_a_fat_tree_that_k_does_not_fill_has_fewer_pods():
    cluster = ideal({"name": "fat_tree", "k": 8}, nodes=8, rails=False)       # 64 of 128 hosts: 4 of 8 pods
    assert {v for v in cluster.graph if str(v).startswith("leaf")} == {f"leaf {p}.{i}" for p in range(4) for i in range(4)}


def test_a_fat_tree_by_counts_and_oversubscribed_at_each_tier():
    """2 pods of 2 nodes; 16 NICs to a pod on 8 rails, 8 leaves of 2 NICs; 2:1 at the leaves, 4:1 at the spines.

    A leaf sends 2 x 50 / 2 = 50 GB/s over 2 spines, 25 each. A spine gets 8 x 25 = 200 and sends 50 over its 2 of 4 cores.
    """
    fabric = {"name": "fat_tree", "pods": 2, "leaves": 8, "spines": 2, "cores": 4, "core_oversubscription": 4, "latency": "1us"}
    cluster = ideal(fabric, oversubscription=2.0)
    assert rates(cluster)["leaf_up"] == (32, 25e9)
    assert rates(cluster)["spine_up"] == (8, 25e9)
    assert oversubscription(cluster) == {"leaf": 2.0, "spine": 4.0}
    assert bisection_bandwidth(cluster) == pytest.approx(100e9)         # 2 spines of a pod x 50
    assert all_to_all(cluster).latency_s == pytest.approx(4e-6)
    assert names(cluster, 0, 8) == ["nic_up 0", "nic_down 8"]           # the same rail of a pod


# ---- dragonfly


def test_the_balanced_dragonfly_is_a_complete_graph_of_complete_graphs():
    cluster = load_cluster("dragonfly")
    routers = nx.Graph()
    for a, b, data in cluster.graph.edges(data=True):
        if data["kind"] in ("local", "global"):
            routers.add_edge(a, b, kind=data["kind"])
    assert len(routers) == 36
    assert all(degree == 3 + 2 for _, degree in routers.degree())        # 3 others of the group, 2 global links
    links = by_kind(cluster)
    assert (len(links["local"]), len(links["global"])) == (9 * 4 * 3, 9 * 8)
    group = {router: router.split()[1].split(".")[0] for router in routers}
    between = {(group[a], group[b]) for a, b, kind in routers.edges(data="kind") if kind == "global"}
    assert len(between) == 36, "every two groups are joined"


def test_dragonfly_routes_are_minimal_and_take_one_global_link():
    """At most local, global, local between groups; one local link within. Two globals in a row would be shorter at times."""
    cluster = load_cluster("dragonfly")
    src, dst = pairs_of(cluster)
    routes = cluster.routes(src, dst)
    kind = np.array([link.kind for link in cluster.links])[routes.links]
    row = np.repeat(np.arange(src.size), np.diff(routes.start))
    wide, local = (np.bincount(row, kind == name, src.size) for name in ("global", "local"))
    assert (wide == (cluster.node_of[src] != cluster.node_of[dst])).all()           # a node is a group here
    assert (local <= 2).all()
    assert diameter(cluster) == 5
    inner = nx.DiGraph((a, b) for a, b, k in cluster.graph.edges(data="kind") if k in ("local", "global"))
    assert max(max(far.values()) for _, far in nx.all_pairs_shortest_path_length(inner)) == 3


def test_dragonfly_bisection_and_oversubscription():
    """4 of 9 groups to 5: 20 global links of 50 GB/s; a group takes in 8 NICs and has 8 global links."""
    cluster = load_cluster("dragonfly")
    assert bisection_bandwidth(cluster) == pytest.approx(20 * 50e9)
    assert oversubscription(cluster) == {"group": 1.0}
    slow = load_cluster("dragonfly", fabric={"global_bandwidth": "100Gb/s"})
    assert oversubscription(slow) == {"group": 4.0}
    assert bisection_bandwidth(slow) == pytest.approx(20 * 12.5e9)


def test_global_links_between_the_same_routers_are_one():
    """2 groups of 2 routers with 2 global links each: 4 links between the groups, router i to router i, two by two."""
    fabric = {"name": "dragonfly", "groups": 2, "routers": 2, "global_links": 2}
    cluster = ideal(fabric, nodes=2, rails=False)
    assert [(link.name, link.capacity) for link in by_kind(cluster)["global"]] == [
        ("global 0.0>1.0", 2 * NIC), ("global 0.1>1.1", 2 * NIC), ("global 1.0>0.0", 2 * NIC), ("global 1.1>0.1", 2 * NIC),
    ]  # fmt: skip
    assert names(cluster, 0, 12) == ["nic_up 0", "local 0.0>0.1", "global 0.1>1.1", "nic_down 12"]


# ---- planes


def test_planes_as_deepseeks_meet_in_the_nodes_only():
    cluster = load_cluster("multi_plane")
    assert names(cluster, 0, 8) == ["nic_up 0", "nic_down 8"]                   # plane 0, nodes 0 and 1 share a leaf
    far = names(cluster, 0, 40)
    assert [far[0], far[-1]] == ["nic_up 0", "nic_down 40"]
    assert far[1].startswith("leaf_up 0.0.")
    assert far[2].startswith("leaf_down 0.1.")
    assert names(cluster, 0, 9) == ["nvlink_up 0", "nvlink_down 1", "nic_up 1", "nic_down 9"]
    links = by_kind(cluster)
    assert (len(links["leaf_up"]), links["leaf_up"][0].capacity) == (8 * 2 * 2, 4 * 50e9 / 2)
    assert diameter(cluster) == 6
    assert oversubscription(cluster) == {"leaf": 1.0}
    assert bisection_bandwidth(cluster) == pytest.approx(32 * 50e9)


def test_the_planes_of_the_paper_have_its_switches():
    """arXiv 2505.09343: 768 switches of 64 ports for 16,384 endpoints; a plane of 2,048 is 64 leaves and 32 spines."""
    fabric = {"name": "multi_plane", "planes": 1, "nodes_per_leaf": 32, "spines": 32}
    cluster = load_cluster("ideal_rail", nodes=2048, gpus_per_node=1, fabric=fabric, nvlink={"bandwidth": None})
    tiers = [v.split()[0] for v in cluster.graph if isinstance(v, str)]
    assert (tiers.count("leaf"), tiers.count("spine")) == (64, 32)
    assert 8 * (64 + 32) == 768
    assert rates(cluster)["leaf_up"] == (64 * 32, NIC)


def test_a_nic_split_over_planes_has_a_port_in_each():
    """4 planes: ports of 12.5 GB/s; a leaf holds rail i of 2 nodes, 2 ports, and sends them on over 2 spines."""
    fabric = {"name": "multi_plane", "planes": 4, "split": True, "nodes_per_leaf": 2, "spines": 2}
    cluster = ideal(fabric, routing="spray")
    assert rates(cluster)["nic_up"] == (32 * 4, NIC / 4)
    assert rates(cluster)["leaf_up"] == (4 * 16 * 2, 2 * NIC / 4 / 2)
    assert bisection_bandwidth(cluster) == pytest.approx(16 * NIC)
    assert oversubscription(cluster) == {"leaf": 1.0}
    src, dst = pairs_of(cluster)
    routes = cluster.routes(src, dst)
    check_routes(cluster, src, dst, routes)
    up = [cluster.links[link].name for link in routes.links if cluster.links[link].kind == "nic_up"]
    assert {f"nic_up 9.{plane}" for plane in range(4)} <= set(up)
    assert diameter(cluster) == 4
    assert all_to_all(cluster).gpu_bytes_per_s == pytest.approx(31 / 24 * NIC)        # 24 of 31 leave the node


# ---- NVLink domains, shared NICs


def test_one_nvlink_domain_and_several():
    one = load_cluster("gb200_nvl72")
    assert bisection_bandwidth(one) == pytest.approx(36 * 900e9)
    assert diameter(one) == 2
    assert all_to_all(one).gpu_bytes_per_s == pytest.approx(900e9)
    four = load_cluster("gb200_nvl72", nodes=4, fabric={"name": "leaf_spine", "spines": 4}, nic={"rails": 4})
    assert bisection_bandwidth(four) == pytest.approx(2 * 72 * 50e9)
    assert len(by_kind(four)["leaf_up"]) == 4 * 4
    assert names(four, 0, 71) == ["nvlink_up 0", "nvlink_down 71"]
    assert names(four, 0, 76) == ["nic_up 0", "nic_down 76"]                    # rail 0: GPU 4 of the next rack


def test_gpus_that_share_a_nic():
    cluster = load_cluster("ideal_rail", nodes=2, nic={"per_gpu": "1/4", "rails": False})
    assert rates(cluster) == {
        "nvlink_up": (16, NVLINK), "nvlink_down": (16, NVLINK), "pcie_up": (16, NIC), "pcie_down": (16, NIC),
        "nic_up": (4, NIC), "nic_down": (4, NIC),
    }  # fmt: skip
    assert names(cluster, 5, 8) == ["pcie_up 5", "nic_up 1", "nic_down 2", "pcie_down 8"]
    assert oversubscription(cluster) == {"nic": 4.0}
    assert bisection_bandwidth(cluster) == pytest.approx(2 * NIC)
    assert diameter(cluster) == 4
    assert load_cluster("ideal_rail", nodes=2, nic={"per_gpu": 0.25}).n_gpus == 16


def test_the_latency_of_a_traversal_is_the_same_however_many_share_a_nic():
    for per_gpu in (1, 2, "1/2", "1/8"):
        cluster = load_cluster("h100_sxm", nodes=2, nic={"per_gpu": per_gpu})
        assert cluster.routes(np.array([0]), np.array([8])).latency[0] == pytest.approx(2.8e-6)


def test_shared_nics_behind_leaves_on_rails():
    """8 GPUs on 4 NICs to a node: rails are those of the NICs, and PXN relays to a GPU whose NIC is on the rail."""
    cluster = load_cluster(
        "ideal_rail", nodes=2, nic={"per_gpu": "1/2"}, fabric={"name": "rail_only"}, routing={"name": "pxn"}
    )
    assert cluster.wires.rail_of[:8].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert names(cluster, 0, 9) == ["pcie_up 0", "nic_up 0", "nic_down 4", "pcie_down 9"]
    assert names(cluster, 0, 11)[:2] == ["nvlink_up 0", "nvlink_down 3"]
    src, dst = pairs_of(cluster)
    check_routes(cluster, src, dst, cluster.routes(src, dst))


# ---- a fabric of the user's


def star_of_two(nics, *, trunk):
    """Two switches with a trunk, half of the NICs on each."""
    from clustersim.wiring import join

    for k in range(nics.n):
        nics.plug(k, f"half {2 * k // nics.n}")
    join(nics.graph, "half 0", "top 0", "half", 0, float(trunk), 0.0)
    join(nics.graph, "half 1", "top 0", "half", 1, float(trunk), 0.0)


def test_a_fabric_of_the_users_own():
    cluster = ideal({"name": "tests.unit.test_fabrics:star_of_two", "trunk": 123e9}, nodes=2)
    assert bisection_bandwidth(cluster) == 123e9
    assert names(cluster, 0, 8) == ["nic_up 0", "half_up 0", "half_down 1", "nic_down 8"]


# ---- what cannot be


@pytest.mark.parametrize(
    ("nodes", "fabric", "nic", "said"),
    [
        (4, {"name": "leafspine"}, {}, ["topology.fabric=leafspine", "did you mean leaf_spine?"]),
        (4, {"spines": 2}, {}, ["topology.fabric", "must name one of", "fat_tree"]),
        (4, "leaf_spine", {}, ["topology.fabric=leaf_spine", "must name one of"]),
        (4, {"name": "leaf_spine", "spine": 2}, {}, ["topology.fabric.spine=2", "did you mean spines?"]),
        (4, {"name": "leaf_spine", "spines": 0}, {}, ["topology.fabric.spines=0", "whole number from 1"]),
        (4, {"name": "leaf_spine", "spines": 2.5}, {}, ["topology.fabric.spines=2.5", "a whole number"]),
        (4, {"name": "leaf_spine", "nodes_per_leaf": 3}, {}, ["topology.fabric.nodes_per_leaf=3", "divide the 4 nodes"]),
        (4, {"name": "leaf_spine", "latency": 3}, {}, ["topology.fabric.latency = 3", "unit"]),
        (4, {"name": "crossbar"}, {"oversubscription": 2}, ["topology.nic.oversubscription=2", "crossbar", "must be 1"]),
        (4, {"name": "rail_only"}, {"rails": False}, ["rail_only", "nic.rails"]),
        (4, {"name": "rail_only"}, {}, ["GPU 9 cannot be reached from GPU 0", "routing.name=pxn"]),
        (4, {"name": "fat_tree", "k": 5}, {"rails": False}, ["topology.fabric.k=5", "even"]),
        (3, {"name": "fat_tree", "k": 8}, {"rails": False}, ["topology.fabric.k=8", "24 NICs", "16 NICs"]),
        (4, {"name": "fat_tree", "k": 4}, {"rails": False}, ["topology.fabric.k=4", "32 NICs"]),
        (4, {"name": "fat_tree"}, {}, ["topology.fabric.pods", "needs it"]),
        (4, {"name": "fat_tree", "k": 8, "cores": 3}, {}, ["topology.fabric.cores", "k=8 says it"]),
        (4, {"name": "fat_tree", "pods": 2, "leaves": 8, "spines": 2, "cores": 3}, {}, ["topology.fabric.cores=3", "multiple"]),
        (4, {"name": "fat_tree", "pods": 3, "leaves": 8, "spines": 2, "cores": 4}, {}, ["topology.fabric.leaves=8", "3 groups"]),
        (
            4, {"name": "fat_tree", "pods": 2, "leaves": 8, "spines": 2, "cores": 4, "core_oversubscription": 0.5}, {},
            ["topology.fabric.core_oversubscription=0.5", "from 1 up"],
        ),
        (4, {"name": "dragonfly", "groups": 3, "routers": 2}, {}, ["topology.fabric.global_links", "needs it"]),
        (
            4, {"name": "dragonfly", "groups": 4, "routers": 2, "global_links": 2}, {"rails": False},
            ["topology.fabric.global_links=2", "the 4 of a group", "3 others"],
        ),
        (
            4, {"name": "dragonfly", "groups": 3, "routers": 2, "global_links": 1}, {"rails": False},
            ["topology.fabric.routers=2", "32 NICs", "6 switches"],
        ),
        (4, {"name": "multi_plane", "planes": 3, "spines": 1}, {}, ["topology.fabric.planes=3", "8 NICs of a node"]),
        (4, {"name": "multi_plane", "planes": 2, "spines": 1, "split": "yes"}, {}, ["topology.fabric.split=yes", "true or"]),
        (4, {"name": "crossbar"}, {"rails": 3}, ["topology.nic.rails=3", "divides the 8 NICs"]),
        (4, {"name": "crossbar"}, {"rails": "no"}, ["topology.nic.rails=no"]),
        (4, {"name": "crossbar"}, {"per_gpu": "1/3"}, ["topology.nic.per_gpu=1/3", "share evenly"]),
        (4, {"name": "crossbar"}, {"per_gpu": "2/3"}, ["topology.nic.per_gpu=2/3"]),
        (4, {"name": "crossbar"}, {"per_gpu": "half"}, ["topology.nic.per_gpu=half"]),
        (4, {"name": "crossbar"}, {"per_gpu": "1/0"}, ["topology.nic.per_gpu=1/0"]),
        (4, {"name": "crossbar"}, {"bandwidth": None}, ["topology.fabric", "no NICs"]),
        (4, {"name": "crossbar"}, {"bandwidth": "1e298 GB/s", "per_gpu": 10**9}, ["above 0 and finite"]),
    ],
)  # fmt: skip
def test_a_fabric_that_cannot_be_is_refused_in_one_line(nodes, fabric, nic, said):
    with pytest.raises(InputError) as caught:
        load_cluster("ideal_rail", nodes=nodes, fabric=fabric, nic=nic)
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
