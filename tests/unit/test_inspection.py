"""What `clustersim inspect` says is what the wires and the tables are."""

import sys

import pytest

import clustersim as cs
from clustersim.cli import main
from clustersim.network.measures import all_to_all, bisection_bandwidth, by_kind, diameter, oversubscription
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


def test_what_routes_make_of_a_topology_is_told(capsys, monkeypatch):
    _, out, _ = said(capsys, monkeypatch, "fat_tree")
    for words in ("leaf 1:1, spine 1:1", "diameter 6 links, 4.60 us", "routing ecmp, seed 0", "even spread: leaf_up 1."):
        assert words in out
    _, out, _ = said(capsys, monkeypatch, "rail_only")
    assert "routing pxn" in out
    assert "collisions" not in out, "no parallel links"


def test_what_all_gpus_can_send_at_once_is_what_the_busiest_link_lets_them():
    """ideal_rail, 4 nodes of 8, 2:1 on rails: of 31 others 3 are on the own leaf, 7 in the node; 21 cross 8 x 21 / 200 GB/s."""
    whole = all_to_all(cs.load_cluster("ideal_rail", **RAILS_2TO1))
    assert whole.gpu_bytes_per_s == pytest.approx(31 / (4 * 21 / 100e9))
    assert whole.busiest == "leaf_up 0"
    assert whole.link_bytes.sum() == 32 * (10 * 2 + 21 * 4)
    alone = all_to_all(cs.load_cluster("ideal_rail", nodes=1, gpus_per_node=1))
    assert (alone.gpu_bytes_per_s, alone.busiest, alone.hops) == (0.0, None, 0)


def test_a_machine_of_2048_gpus_is_measured_from_few_switches():
    """The flow across the middle is sought among switches: GPUs of a half are one node, whatever their number."""
    import networkx as nx

    sizes = []
    real = nx.maximum_flow_value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nx, "maximum_flow_value", lambda graph, *ends: sizes.append(len(graph)) or real(graph, *ends))
        cluster = cs.load_cluster("h100_sxm", nodes=256, fabric={"name": "leaf_spine", "spines": 8, "nodes_per_leaf": 64})
        assert bisection_bandwidth(cluster) == pytest.approx(1024 * 50e9)
    assert sizes == [2 + 32 + 8]


# ---- pictures


@pytest.mark.parametrize("name", ["ideal_rail", "dragonfly", "hand_drawn", "a100_p4d", "gb200_nvl72"])
def test_a_topology_is_drawn(capsys, monkeypatch, tmp_path, name):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    code, out, _ = said(capsys, monkeypatch, name, "--plot")
    assert code == 0
    assert f"drawn in {name}.png" in out
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_large_machine_some_is_drawn_and_the_picture_says_how_much(tmp_path):
    pytest.importorskip("matplotlib")
    from clustersim.results.drawing import draw_machine

    fabric = {"name": "leaf_spine", "spines": 40, "nodes_per_leaf": 2}
    cluster = cs.load_cluster("ideal_rail", nodes=32, fabric=fabric)
    draw_machine(cluster, tmp_path / "large.svg")
    # 4 nodes and the last, all their leaves (rail 0..7 of nodes 0-1, 2-3, 30-31), the first 16 spines and the last
    text = (tmp_path / "large.svg").read_text()
    for words in ("GPU: 256", "(40 drawn)", "leaf: 128", "(24 drawn)", "spine: 40", "(17 drawn)", "node 31"):
        assert f"<!-- {words} -->" in text, words
    assert "<!-- node 4 -->" not in text


def test_without_matplotlib_a_picture_says_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)        # makes the import fail
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, monkeypatch, "ideal_rail", "--plot")
    assert code == 2
    assert "pip install 'clustersim[plot]'" in err


@pytest.mark.parametrize(("file", "why"), [("nowhere/x.png", "cannot be written"), ("x.txt", "is no kind of picture")])
def test_a_picture_that_cannot_be_written_is_one_line(capsys, monkeypatch, tmp_path, file, why):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, monkeypatch, "ideal_rail", "--plot", "-o", file)
    assert code == 2
    assert err.startswith(f"clustersim: inspect -o {file}: {why}")
    assert err.count("\n") == 1


def test_a_run_cannot_be_drawn(capsys, monkeypatch, tmp_path):
    (tmp_path / "summary.parquet").write_bytes(b"")
    code, _, err = said(capsys, monkeypatch, str(tmp_path), "--plot")
    assert code == 2
    assert "--plot draws topologies and traces with tokens" in err


def test_a_trace_is_drawn(capsys, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    path = str(PACKAGE / "workload" / "data" / "tiny")
    code, out, _ = said(capsys, monkeypatch, path, "--plot", "-o", str(tmp_path / "t.png"))
    assert code == 0
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert "overlap" in out


def test_a_sound_trace_is_called_so_and_a_broken_one_is_not(capsys, monkeypatch, tmp_path):
    code, out, _ = said(capsys, monkeypatch, str(PACKAGE / "workload" / "data" / "tiny"), "--check")
    assert (code, "keeps the format moetrace/1" in out) == (0, True)
    code, _, err = said(capsys, monkeypatch, str(tmp_path), "--check")
    assert (code, "holds no tokens.parquet" in err) == (2, True)


def test_a_trace_is_told(capsys, monkeypatch):
    code, out, _ = said(capsys, monkeypatch, str(PACKAGE / "workload" / "data" / "tiny"))
    assert code == 0
    for words in ("24,576 (prefill); sequences 192", "6 MoE layers, 32 experts, top-4", "expert_ids, gate_", "code, prose"):
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
        ([], "takes one of: a trace"),
        (["ideal_rail", "-o", "x.png"], "add --plot"),
        (["ideal_rail", "--plot", "-o"], "names no file"),
        (["ideal_rail", "--plt"], "there is no such flag"),
        (["a", "b"], "takes one of: a trace"),
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
