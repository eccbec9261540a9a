"""What `clustersim inspect` says is what the wires and the tables are."""

import pytest

import clustersim as cs
from clustersim.cli import main
from clustersim.network.measures import bisection_bandwidth, by_kind, diameter, oversubscription
from clustersim.places import PACKAGE

RAILS_2TO1 = {"nodes": 4, "nic": {"oversubscription": 2.0}}
TOR_2TO1 = {"nodes": 4, "nic": {"oversubscription": 2.0, "rails": False}}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"nodes": 2}, 8 * 50e9),               # the NICs of one node
        ({"nodes": 5}, 16 * 50e9),              # of two nodes, to the other three
        ({"nodes": 1}, 4 * 450e9),              # NVLink of half a node; routes inside a node use no NIC
        ({"nodes": 1, "gpus_per_node": 1}, 0.0),
        (RAILS_2TO1, 16 * 50e9),                # rail to the same rail stays on its leaf: uplinks do not limit
        (TOR_2TO1, 2 * 8 * 50e9 / 2),           # every byte between nodes crosses an uplink
    ],
)  # fmt: skip
def test_bisection_is_what_crosses_the_middle(overrides, expected):
    assert bisection_bandwidth(cs.load_cluster("ideal_rail", **overrides)) == pytest.approx(expected, rel=1e-12)


def test_a_route_is_two_links_long_and_four_over_the_spine():
    assert diameter(cs.load_cluster("ideal_rail", nodes=2)) == 2
    assert diameter(cs.load_cluster("ideal_rail", **RAILS_2TO1)) == 4
    assert diameter(cs.load_cluster("ideal_rail", **TOR_2TO1)) == 4
    assert diameter(cs.load_cluster("ideal_rail", nodes=1, gpus_per_node=1)) == 0


def test_oversubscription_is_counted_at_the_leaves():
    assert oversubscription(cs.load_cluster("ideal_rail")) == {}
    assert oversubscription(cs.load_cluster("ideal_rail", **RAILS_2TO1)) == {"leaf": 2.0}
    assert oversubscription(cs.load_cluster("ideal_rail", **TOR_2TO1)) == {"leaf": 2.0}


def test_links_are_listed_by_kind():
    kinds = by_kind(cs.load_cluster("ideal_rail", **RAILS_2TO1))
    assert {kind: len(links) for kind, links in kinds.items()} == {
        "nvlink_up": 32, "nvlink_down": 32, "nic_up": 32, "nic_down": 32, "leaf_up": 8, "leaf_down": 8,
    }  # fmt: skip


def said(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "80")
    code = main(["inspect", *arguments])
    out, err = capsys.readouterr()
    return code, " ".join(out.split()), err


def test_a_topology_is_told(capsys, monkeypatch):
    code, out, _ = said(capsys, monkeypatch, "h100_sxm")
    assert code == 0
    for words in ("h100_sxm: 64 GPUs", "bisection 1.60 TB/s", "diameter 2 links", "none behind the ports", "nic_up 64 50.0 GB/s"):
        assert words in out


def test_a_trace_is_told(capsys, monkeypatch):
    code, out, _ = said(capsys, monkeypatch, str(PACKAGE / "workload" / "data" / "tiny"))
    assert code == 0
    for words in ("24,576; sequences 192", "6 MoE layers, 32 experts, top-4, gate weights recorded", "code, prose"):
        assert words in out


def test_a_run_is_told_as_it_ended(capsys, monkeypatch, tmp_path):
    small = ["topology.nodes=1", "workload.tokens_per_gpu=64", "model.n_layers=2", f"output={tmp_path}"]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(small) == 0
    printed = " ".join(capsys.readouterr().out.split())
    (folder,) = (tmp_path / "runs").iterdir()
    code, out, _ = said(capsys, monkeypatch, str(folder))
    assert code == 0
    assert printed.startswith(out), "the same tables; the notes and the folder follow"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing/here"], "there is no such file or folder"),
        (["."], "holds neither a trace"),
        ([], "takes one path"),
        (["a", "b"], "takes one path"),
        (["no.yaml"], "there is no such file"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(capsys, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, monkeypatch, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("clustersim: ")
    assert err.count("\n") == 1
    assert words in err
