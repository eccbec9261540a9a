"""Machines: links and routes by hand, overrides, and every way in which a machine's file can be wrong, in one line each."""

import numpy as np
import pytest
import yaml

from clustersim import load_cluster
from clustersim.cluster import build_cluster
from clustersim.places import data_folder
from clustersim.types import InputError


def route(cluster, src, dst):
    routes = cluster.routes(np.array([src]), np.array([dst]))
    return [cluster.links[link].name for link in routes.links]


def test_links_of_ideal_rail_are_four_per_gpu_by_kind_then_gpu():
    cluster = load_cluster("ideal_rail", nodes=2)
    assert [link.name for link in cluster.links] == [
        f"{kind} {gpu}" for kind in ("nvlink_up", "nvlink_down", "nic_up", "nic_down") for gpu in range(16)
    ]
    assert [link.id for link in cluster.links] == list(range(64))
    np.testing.assert_array_equal(cluster.capacity, [450e9] * 32 + [50e9] * 32)
    assert not cluster.latency.any()
    assert (cluster.n_gpus, cluster.n_nodes, cluster.gpus_per_node) == (16, 2, 8)
    assert cluster.node_of.tolist() == [0] * 8 + [1] * 8
    assert cluster.local_of.tolist() == [*range(8)] * 2


@pytest.mark.parametrize("nodes", [1, 2, 3, 8, 16])
def test_any_number_of_nodes(nodes):
    cluster = load_cluster("ideal_rail", nodes=nodes)
    assert len(cluster.links) == 32 * nodes
    assert cluster.n_gpus == 8 * nodes


def test_routes_within_a_node_use_nvlink_and_between_nodes_the_nics_alone():
    cluster = load_cluster("ideal_rail", nodes=3)
    assert route(cluster, 1, 6) == ["nvlink_up 1", "nvlink_down 6"]
    assert route(cluster, 1, 9) == ["nic_up 1", "nic_down 9"]       # the same rail
    assert route(cluster, 1, 22) == ["nic_up 1", "nic_down 22"]     # another rail


def test_oversubscribed_rails_cross_the_spine_from_rail_to_rail():
    cluster = load_cluster("ideal_rail", nodes=4, nic={"oversubscription": 2})
    assert route(cluster, 1, 9) == ["nic_up 1", "nic_down 9"]
    assert route(cluster, 1, 10) == ["nic_up 1", "leaf_up 1", "leaf_down 2", "nic_down 10"]
    assert route(cluster, 1, 2) == ["nvlink_up 1", "nvlink_down 2"]
    uplinks = [link for link in cluster.links if link.kind in ("leaf_up", "leaf_down")]
    assert [link.name for link in uplinks] == [f"{kind} {rail}" for kind in ("leaf_up", "leaf_down") for rail in range(8)]
    assert {link.capacity for link in uplinks} == {4 * 50e9 / 2}


def test_oversubscribed_leaves_of_whole_nodes():
    cluster = load_cluster("ideal_rail", nodes=2, nic={"oversubscription": 4, "rails": False})
    assert route(cluster, 1, 9) == ["nic_up 1", "leaf_up 0", "leaf_down 1", "nic_down 9"]
    assert {link.capacity for link in cluster.links if link.kind == "leaf_up"} == {8 * 50e9 / 4}


def test_latency_adds_up_over_the_hops():
    cluster = load_cluster("h100_sxm", nodes=2, nic={"oversubscription": 2.0})
    routes = cluster.routes(np.array([0, 0, 0]), np.array([1, 8, 9]))
    np.testing.assert_allclose(routes.latency, [936.25e-9, 2.8e-6, 2.8e-6], rtol=1e-12)
    per_hop = np.split(cluster.latency[routes.links], routes.start[1:-1])
    np.testing.assert_allclose(routes.latency, [hops.sum() for hops in per_hop])
    assert (routes.weights == 1).all()


def test_no_transfers_have_no_routes():
    none = np.zeros(0, np.int64)
    routes = load_cluster("ideal_rail", nodes=2).routes(none, none)
    assert routes.start.tolist() == [0]
    assert routes.links.size == routes.latency.size == 0


def test_routes_of_many_pairs_are_the_routes_of_each():
    for nic in ({}, {"oversubscription": 2.0}, {"oversubscription": 2.0, "rails": False}):
        cluster = load_cluster("h100_sxm", nodes=3, nic=nic)
        src, dst = np.nonzero(~np.eye(24, dtype=bool))
        many = cluster.routes(src, dst)
        for i in range(0, src.size, 17):
            names = [cluster.links[link].name for link in many.links[many.start[i] : many.start[i + 1]]]
            assert names == route(cluster, src[i], dst[i])
            assert names[0].endswith(f"_up {src[i]}")
            assert names[-1].endswith(f"_down {dst[i]}")


def test_overrides_replace_single_fields():
    cluster = load_cluster(
        "ideal_rail", nodes=2, gpus_per_node=4, nic={"bandwidth": "200Gb/s"}, nvlink={"achievable": "400 GB/s", "latency": "1us"}
    )
    assert cluster.n_gpus == 8
    assert set(cluster.capacity) == {25e9, 400e9}
    assert cluster.routes(np.array([0]), np.array([1])).latency[0] == pytest.approx(1e-6)


def test_several_nics_of_a_gpu_add_up():
    cluster = load_cluster("ideal_rail", nodes=2, nic={"per_gpu": 2})
    assert {link.capacity for link in cluster.links if link.kind == "nic_up"} == {100e9}


def test_one_node_needs_no_nic_and_nodes_of_one_gpu_need_no_nvlink():
    assert len(load_cluster("ideal_rail", nodes=1, nic={"bandwidth": None}).links) == 16
    alone = load_cluster("ideal_rail", nodes=4, gpus_per_node=1, nvlink={"bandwidth": None})
    assert route(alone, 0, 3) == ["nic_up 0", "nic_down 3"]


@pytest.mark.parametrize("path", sorted(data_folder("topologies").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_machine_loads_by_name_and_by_path_and_every_gpu_reaches_every_other(path):
    cluster = load_cluster(path.stem)
    assert cluster.name == load_cluster(path).name == path.stem
    src, dst = np.nonzero(~np.eye(cluster.n_gpus, dtype=bool))
    routes = cluster.routes(src, dst)
    assert (np.diff(routes.start) >= 2).all()
    assert (cluster.capacity > 0).all()
    assert cluster.gpu.bf16_flops > 0


def test_a_machine_of_the_users_own(tmp_path):
    fields = yaml.safe_load((data_folder("topologies") / "ideal_rail.yaml").read_text())
    fields["gpus_per_node"] = 2
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(fields))
    assert load_cluster(tmp_path / "mine.yaml", nodes=3).n_gpus == 6
    assert load_cluster(str(tmp_path / "mine.yaml")).name == "mine"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"nodes": 0}, ["topology.nodes=0"]),
        ({"nodes": 2.5}, ["topology.nodes=2.5"]),
        ({"nodes": True}, ["topology.nodes=True"]),
        ({"nodes": "eight"}, ["topology.nodes=eight"]),
        ({"gpus_per_node": -8}, ["topology.gpus_per_node=-8"]),
        ({"node": 2}, ["topology.node", "did you mean nodes?"]),
        ({"nic": {"bandwith": "1Gb/s"}}, ["topology.nic.bandwith", "did you mean bandwidth?"]),
        ({"nic": {"bandwidth": None}}, ["ideal_rail", "cannot be reached"]),
        ({"nvlink": {"bandwidth": None}, "nic": {"bandwidth": None}}, ["ideal_rail", "cannot be reached"]),
        ({"nic": {"bandwidth": "400"}}, ["topology.nic.bandwidth", "400"]),
        ({"nic": {"bandwidth": "0 GB/s"}}, ["topology.nic.bandwidth", "0"]),
        ({"nic": {"latency": "3.7"}}, ["topology.nic.latency", "3.7"]),
        ({"nic": {"latency": "-1us"}}, ["topology.nic.latency", "-1us"]),
        ({"nic": {"per_gpu": 0}}, ["topology.nic.per_gpu=0"]),
        ({"nic": {"oversubscription": 0.5}}, ["topology.nic.oversubscription=0.5"]),
        ({"nic": {"oversubscription": "two"}}, ["topology.nic.oversubscription=two"]),
        ({"nic": {"oversubscription": float("nan")}}, ["topology.nic.oversubscription=nan"]),
        ({"nic": {"oversubscription": float("inf")}}, ["topology.nic.oversubscription=inf"]),
        ({"nic": None}, ["topology.nic"]),
        ({"gpu": {"memory": "80"}}, ["topology.gpu.memory", "80"]),
    ],
)
def test_a_machine_that_cannot_be_is_refused_in_one_line(overrides, said):
    with pytest.raises(InputError) as caught:
        load_cluster("ideal_rail", **{"nodes": 2} | overrides)
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"topology=h100_smx: .*did you mean h100_sxm\?.*known: .*ideal_rail"):
        load_cluster("h100_smx")


@pytest.mark.parametrize(
    ("text", "said"),
    [("nodes: [1, 2", "not a YAML file"), ("- 1\n- 2\n", "holds no fields"), ("", "holds no fields"), ("nodes: 2\n", "gpu")],
)
def test_a_file_that_is_no_machine(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load_cluster(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_text(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_cluster(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="not a YAML file"):
        load_cluster(tmp_path / "binary.yaml")


@pytest.mark.parametrize("key", ["nodes", "gpus_per_node", "gpu", "nvlink", "nic"])
def test_a_machine_that_leaves_something_out(key):
    fields = yaml.safe_load((data_folder("topologies") / "ideal_rail.yaml").read_text())
    del fields[key]
    with pytest.raises(InputError, match=rf"topology\.{key}"):
        build_cluster("mine", fields)


@pytest.mark.parametrize(("section", "key"), [("gpu", "bf16"), ("nvlink", "latency"), ("nic", "rails")])
def test_a_machine_that_leaves_a_field_out(section, key):
    fields = yaml.safe_load((data_folder("topologies") / "ideal_rail.yaml").read_text())
    del fields[section][key]
    with pytest.raises(InputError, match=rf"topology\.{section}\.{key}"):
        build_cluster("mine", fields)
