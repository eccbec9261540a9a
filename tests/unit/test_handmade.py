"""Networks that the user writes out link by link: what a line means, and every way to get one wrong."""

import copy

import numpy as np
import pytest
import yaml

from clustersim import InputError
from clustersim.cluster import build_cluster
from clustersim.network.measures import bisection_bandwidth, by_kind, diameter, oversubscription
from clustersim.places import data_folder
from tests.walks import check_routes, pairs_of

GPU = yaml.safe_load((data_folder("topologies") / "hand_drawn.yaml").read_text())["gpu"]


def wire(*links, bandwidth="50 GB/s", latency="1us", achievable=None):
    return {"bandwidth": bandwidth, "achievable": achievable, "latency": latency, "links": list(links)}


def machine(switches, nodes=2, gpus_per_node=2, routing=None, **classes):
    fields = {"nodes": nodes, "gpus_per_node": gpus_per_node, "gpu": GPU, "graph": {"switches": switches, **classes}}
    return build_cluster("mine", fields | ({"routing": routing} if routing else {}))


def names(cluster, src, dst):
    routes = cluster.routes(np.array([src]), np.array([dst]))
    return [cluster.links[link].name for link in routes.links]


def checked(cluster):
    src, dst = pairs_of(cluster)
    check_routes(cluster, src, dst, cluster.routes(src, dst))
    return cluster


def test_lines_with_ranges_both_ways_and_one_way():
    cluster = checked(machine(
        ["nv 0..1", "leaf 0"],
        nvlink=wire("gpu 0..1 - nv 0", "gpu 2..3 - nv 1", bandwidth="400 GB/s"),
        nic=wire("gpu 0..3 -> leaf 0", "leaf 0 -> gpu 0..3", achievable="45 GB/s"),
    ))  # fmt: skip
    assert [(kind, len(links), links[0].capacity) for kind, links in by_kind(cluster).items()] == [
        ("nvlink_up", 4, 400e9), ("nvlink_down", 4, 400e9), ("nic_up", 4, 45e9), ("nic_down", 4, 45e9),
    ]  # fmt: skip
    assert names(cluster, 0, 1) == ["nvlink_up 0", "nvlink_down 1"]
    assert names(cluster, 0, 3) == ["nic_up 0", "nic_down 3"]
    assert cluster.routes(np.array([0]), np.array([3])).latency.tolist() == [2e-6]
    assert bisection_bandwidth(cluster) == 2 * 45e9


def test_a_ring_of_leaves():
    """4 nodes of 1 GPU, 4 leaves in a ring: the far one is 2 leaves away, by either side; 2 of 4 links cross the middle."""
    cluster = checked(machine(
        ["leaf 0..3"], nodes=4, gpus_per_node=1,
        nic=wire(*(f"gpu {i} - leaf {i}" for i in range(4))),
        ring=wire(*(f"leaf {i} - leaf {(i + 1) % 4}" for i in range(4)), bandwidth="10 GB/s"), routing={"name": "spray"},
    ))  # fmt: skip
    assert diameter(cluster) == 4
    assert bisection_bandwidth(cluster) == 2 * 10e9
    assert oversubscription(cluster) == {"leaf": 50 / 20}
    routes = cluster.routes(np.array([0]), np.array([2]))
    assert sorted(routes.weights.tolist()) == [0.5, 0.5, 0.5, 0.5, 1, 1]
    assert by_kind(cluster)["ring"][0].name == "ring leaf 0>leaf 1"


def test_gpus_wired_to_each_other():
    """Two nodes of 2 GPUs, joined by a wire each: what leaves by it counts as NVLink."""
    cluster = checked(machine(
        ["leaf 0"], nvlink=wire("gpu 0 - gpu 1", "gpu 2 - gpu 3"), nic=wire("gpu 0..3 - leaf 0"),
    ))  # fmt: skip
    assert names(cluster, 1, 0) == ["nvlink_up gpu 1>gpu 0"]
    assert names(cluster, 1, 2) == ["nic_up 1", "nic_down 2"]
    assert {link.kind for link in cluster.links} == {"nvlink_up", "nic_up", "nic_down"}


def test_two_tiers_of_nvlink_switches_are_one_domain():
    """A class that begins with nvlink is NVLink: the way over it is taken, although that over the NICs has fewer links."""
    cluster = checked(machine(
        ["low 0..1", "top 0", "leaf 0"], nodes=1, gpus_per_node=4, nic=wire("gpu 0..3 - leaf 0"),
        nvlink=wire("gpu 0..1 - low 0", "gpu 2..3 - low 1"), nvlink_top=wire("low 0..1 - top 0"),
    ))  # fmt: skip
    assert names(cluster, 0, 1) == ["nvlink_up 0", "nvlink_down 1"]
    assert names(cluster, 0, 3) == ["nvlink_up 0", "nvlink_top_up low 0>top 0", "nvlink_top_down top 0>low 1", "nvlink_down 3"]


def test_a_gpu_with_two_nics_uses_both_when_sprayed():
    cluster = checked(machine(
        ["leaf 0..1"], nodes=2, gpus_per_node=1, nic=wire("gpu 0..1 - leaf 0", "gpu 0..1 - leaf 1"), routing={"name": "spray"},
    ))  # fmt: skip
    routes = cluster.routes(np.array([0]), np.array([1]))
    assert routes.weights.tolist() == [0.5] * 4
    up = {link.name for link in by_kind(cluster)["nic_up"]}
    assert up == {"nic_up 0", "nic_up 1", "nic_up gpu 0>leaf 1", "nic_up gpu 1>leaf 1"}


def test_one_gpu_alone_needs_no_links_that_lead_anywhere():
    cluster = machine(["leaf 0"], nodes=1, gpus_per_node=1, nic=wire("gpu 0 - leaf 0"))
    assert (diameter(cluster), bisection_bandwidth(cluster)) == (0, 0.0)


SOUND = {
    "switches": ["nv 0..1", "leaf 0..1"], "nvlink": wire("gpu 0..1 - nv 0", "gpu 2..3 - nv 1"),
    "nic": wire("gpu 0..1 - leaf 0", "gpu 2..3 - leaf 1"), "trunk": wire("leaf 0 - leaf 1"),
}  # fmt: skip


def changed(graph, path, value):
    graph = copy.deepcopy(graph)
    *way, last = path
    place = graph
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return graph


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["switches"], None, "topology.graph.switches=None: must be a list"),
        (["switches"], "leaf 0", "must be a list"),
        (["switches"], ["nv 0..1", "leaf 0..1", "leaf 1"], "leaf 1 stands there twice"),
        (["switches"], ["nv 0..1", "leaf 0..1", "gpu 4"], "'gpu 4' cannot be the name of a switch"),
        (["switches"], ["nv 0..1", "leaf 1..0"], "leaf 1..0: a range goes from a smaller"),
        (["switches"], ["nv 0..1", "leaf 0..1", "spine 0"], "nothing joins spine 0 to a GPU"),
        (["trunk", "links"], ["leaf 0 - leef 1"], "leef 1 is no switch of graph.switches; did you mean leaf 1?"),
        (["trunk", "links"], ["leaf 0 = leaf 1"], "is no link; write A - B"),
        (["trunk", "links"], ["leaf 0 - leaf 0"], "joins leaf 0 to itself"),
        (["trunk", "links"], ["leaf 0 - leaf 1", "leaf 1 -> leaf 0"], "join the same two; write one link"),
        (["trunk", "links"], ["leaf 0..1 - nv 0..1"], "only one end may be a range"),
        (["trunk", "links"], [], "must be a list of links"),
        (["trunk", "links"], "leaf 0 - leaf 1", "must be a list of links"),
        (["nic", "links"], ["gpu 0..1 - leaf 0", "gpu 2..4 - leaf 1"], "there is no gpu 4; the GPUs are 0 to 3"),
        (["nic", "links"], ["gpu 0..1 - leaf 0", "gpu 2 - leaf 1"], "GPU 3 cannot be reached from GPU 0"),
        (["trunk"], wire("leaf 0 -> leaf 1"), "GPU 0 cannot be reached from GPU 2"),
        (["trunk", "bandwidth"], "0 GB/s", "topology.graph.trunk.bandwidth"),
        (["trunk", "bandwidth"], "100", "topology.graph.trunk.bandwidth = '100'"),
        (["trunk", "latency"], "-1us", "topology.graph.trunk.latency"),
        (["trunk", "achievable"], "fast", "topology.graph.trunk.achievable = 'fast'"),
        (["trunk", "bandwith"], "1 GB/s", "topology.graph.trunk.bandwith: there is no such key; did you mean bandwidth?"),
        (["trunk", "latency"], None, "topology.graph.trunk.latency: it does not say it"),
        (["trunk"], "leaf 0 - leaf 1", "needs its fields"),
        (["trunk_up"], wire("leaf 0 - leaf 1"), "neither ..._up"),
        (["Trunk"], wire("leaf 0 - leaf 1"), "small letters"),
        (["virtual"], wire("leaf 0 - leaf 1"), "nor virtual"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_in_one_line(path, value, said):
    checked(build_cluster("mine", {"nodes": 2, "gpus_per_node": 2, "gpu": GPU, "graph": SOUND}))
    with pytest.raises(InputError) as caught:
        build_cluster("mine", {"nodes": 2, "gpus_per_node": 2, "gpu": GPU, "graph": changed(SOUND, path, value)})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_of_a_class_that_results_sum_up_are_counted_once():
    """nic up from a GPU, and nic again from leaf to spine: nic_bytes would be doubled."""
    with pytest.raises(InputError, match=r"topology\.graph\.nic: nic_up 0 leads to another nic_up, .* twice"):
        machine(["leaf 0..1", "spine 0"], nic=wire("gpu 0..1 - leaf 0", "gpu 2..3 - leaf 1", "leaf 0..1 - spine 0"))


@pytest.mark.parametrize("section", ["nvlink", "nic", "fabric"])
def test_a_graph_says_every_link_so_nothing_else_may(section):
    fields = {"nodes": 2, "gpus_per_node": 2, "gpu": GPU, "graph": SOUND, section: {"bandwidth": "1 GB/s"}}
    with pytest.raises(InputError, match=rf"topology\.{section}: mine has a graph"):
        build_cluster("mine", fields)


@pytest.mark.parametrize("graph", [None, [], "leaf 0 - leaf 1"])
def test_a_graph_is_a_section(graph):
    with pytest.raises(InputError, match=r"topology\.graph="):
        build_cluster("mine", {"nodes": 2, "gpus_per_node": 2, "gpu": GPU, "graph": graph})
