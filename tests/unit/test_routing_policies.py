"""Which way each policy takes: the same one, one by hash, all, the right rail first, or what the user wrote."""

import math

import numpy as np
import pytest

import clustersim as cs
from clustersim import InputError, load_cluster
from clustersim.network.measures import all_to_all, by_kind, collisions, parallel_links
from tests.walks import check_routes, pairs_of

SPINES = {"name": "leaf_spine", "spines": 8}


def machine(name, nodes=8, **routing):
    """ideal_rail with 8 leaves and 8 spines, non-blocking."""
    return load_cluster("ideal_rail", nodes=nodes, fabric=SPINES, routing={"name": name, **routing})


def names(cluster, src, dst):
    routes = cluster.routes(np.array([src]), np.array([dst]))
    return [cluster.links[link].name for link in routes.links]


def every(cluster):
    """Routes of all pairs."""
    src, dst = np.nonzero(~np.eye(cluster.n_gpus, dtype=bool))
    return cluster.routes(src, dst)


# ---- one way


def test_shortest_takes_the_first_spine_always():
    cluster = machine("shortest")
    used = {cluster.links[link].name for link in every(cluster).links}
    assert {name for name in used if name.startswith("leaf_up")} == {f"leaf_up {leaf}.0" for leaf in range(8)}


def test_ecmp_is_the_same_every_time_and_another_with_another_seed():
    one, again, other = machine("ecmp"), machine("ecmp"), machine("ecmp", seed=1)
    np.testing.assert_array_equal(every(one).links, every(again).links)
    up = {cluster: [link for link in every(cluster).links if one.links[link].kind == "leaf_up"] for cluster in (one, other)}
    same = np.mean(np.array(up[one]) == np.array(up[other]))
    n = len(up[one])
    assert abs(same - 1 / 8) <= 4 * math.sqrt(1 / 8 * 7 / 8 / n), "another seed is another draw: 1 in 8 agrees by chance"


def test_ecmp_does_not_depend_on_what_else_is_asked():
    cluster = machine("ecmp")
    whole = every(cluster)
    src, dst = np.nonzero(~np.eye(64, dtype=bool))
    for i in range(0, src.size, 397):
        alone = cluster.routes(src[i : i + 1], dst[i : i + 1])
        np.testing.assert_array_equal(alone.links, whole.links[whole.start[i] : whole.start[i + 1]])


def test_ecmp_spreads_flows_over_the_spines_as_chance_does():
    """Pearson's statistic of n flows on 8 spines has mean 7 and variance 14; the sum over the 8 leaves 56 and 112."""
    for seed in range(3):
        cluster = machine("ecmp", seed=seed)
        carried = all_to_all(cluster).link_bytes
        up = carried[[link.id for link in by_kind(cluster)["leaf_up"]]].reshape(8, 8)        # [leaves, spines]
        flows = up.sum(axis=1)
        assert (flows == 8 * (64 - 8 - 7)).all(), "8 NICs of a leaf, to all GPUs but those of the own node and of the own leaf"
        chi = ((up - flows[:, None] / 8) ** 2 / (flows[:, None] / 8)).sum()
        assert abs(chi - 56) <= 4 * math.sqrt(112)


def test_the_hash_does_not_favour_neighbours():
    """Flows of GPU 0 to consecutive destinations, and of consecutive sources to it, fall on the spines like throws of a die."""
    cluster = load_cluster("ideal_rail", nodes=64, fabric=SPINES, routing={"name": "ecmp"})
    others = np.array([g for g in range(512) if g // 8 and g % 8])
    for src, dst in ((np.zeros_like(others), others), (others, np.zeros_like(others))):
        routes = cluster.routes(src, dst)
        spine = [int(cluster.links[link].name.split(".")[1]) for link in routes.links[1::4]]
        counts = np.bincount(spine, minlength=8)
        assert abs(((counts - others.size / 8) ** 2 / (others.size / 8)).sum() - 7) <= 4 * math.sqrt(14)
        repeats = np.mean(np.diff(spine) == 0)
        assert abs(repeats - 1 / 8) <= 4 * math.sqrt(1 / 8 * 7 / 8 / len(spine))


# ---- all ways


def test_spraying_puts_an_eighth_on_each_spine():
    cluster = machine("spray")
    routes = cluster.routes(np.array([0, 0]), np.array([9, 8]))
    assert routes.start.tolist() == [0, 18, 20]
    said = {cluster.links[link].name: weight for link, weight in zip(routes.links, routes.weights, strict=True)}
    assert said["nic_up 0"] == said["nic_down 9"] == said["nic_down 8"] == 1
    assert {said[f"leaf_up 0.{s}"] for s in range(8)} == {said[f"leaf_down 1.{s}"] for s in range(8)} == {1 / 8}


def test_spraying_over_a_three_tier_tree_weighs_links_by_the_ways_over_them():
    """k = 4: 2 x 2 ways between pods: 1/2 on each leaf link, 1/4 on each core link."""
    cluster = load_cluster(
        "ideal_rail", nodes=2, nic={"rails": False}, fabric={"name": "fat_tree", "k": 4}, routing={"name": "spray"}
    )
    routes = cluster.routes(np.array([0]), np.array([8]))
    kinds = [cluster.links[link].kind for link in routes.links]
    assert kinds == ["nic_up", *["leaf_up"] * 2, *["spine_up"] * 4, *["spine_down"] * 4, *["leaf_down"] * 2, "nic_down"]
    assert routes.weights.tolist() == [1, *[1 / 2] * 2, *[1 / 4] * 8, *[1 / 2] * 2, 1]
    assert routes.latency[0] == pytest.approx((cluster.latency[routes.links] * routes.weights).sum())


def test_an_even_spread_is_as_fast_as_one_link_of_the_sum():
    """Spraying over 8 spines and one spine of eight times the rate are the same system to max-min sharing."""
    nbytes = np.random.default_rng(5).integers(0, 1 << 22, (32, 32)) * ~np.eye(32, dtype=bool)
    nic = {"oversubscription": 3.0}
    wide = load_cluster("ideal_rail", nodes=4, nic=nic, fabric={"name": "leaf_spine", "spines": 1})
    many = load_cluster("ideal_rail", nodes=4, nic=nic, fabric=SPINES, routing={"name": "spray"})
    np.testing.assert_allclose(cs.transfer(many, nbytes).finish, cs.transfer(wide, nbytes).finish, rtol=1e-9)


def test_more_links_than_memory_holds_are_refused(monkeypatch):
    from clustersim import ways

    cluster = machine("spray")
    monkeypatch.setattr(ways, "MOST_LINKS", 2000)
    with pytest.raises(InputError, match=r"routing\.name=spray: .* links for 3,584 transfers are too many"):
        every(cluster)


# ---- collisions


def test_collisions_are_none_when_sprayed_and_all_on_one_when_not():
    for name, expected in (("spray", 1.0), ("shortest", 8.0)):
        cluster = machine(name)
        assert collisions(cluster, all_to_all(cluster).link_bytes) == pytest.approx({"leaf_up": expected, "leaf_down": expected})


def test_collisions_of_ecmp_are_the_busiest_over_the_mean():
    """All leaves carry the same in an all-to-all, so it is the largest of the 64 loads over their mean."""
    cluster = machine("ecmp")
    carried = all_to_all(cluster).link_bytes
    ratios = collisions(cluster, carried)
    for kind in ("leaf_up", "leaf_down"):
        loads = carried[[link.id for link in by_kind(cluster)[kind]]]
        assert ratios[kind] == pytest.approx(loads.max() / loads.mean())
        assert 1.05 < ratios[kind] < 2
    assert ratios.keys() == {"leaf_up", "leaf_down"}, "ports have nothing beside them"


def test_collisions_look_at_the_busiest_set_and_at_rates():
    """Leaf 0 sends 8 and 4 over equal links: 6 would be even. Leaf 1 sends 3 over one of two, which limits nothing."""
    cluster = load_cluster("ideal_rail", nodes=2, gpus_per_node=2, fabric={"name": "leaf_spine", "spines": 2})
    carried = np.zeros(len(cluster.links))
    for name, nbytes in {"leaf_up 0.0": 8.0, "leaf_up 0.1": 4.0, "leaf_up 1.0": 3.0}.items():
        carried[[link.name for link in cluster.links].index(name)] = nbytes
    assert collisions(cluster, carried) == pytest.approx({"leaf_up": 8 / 6})
    assert collisions(cluster, 0 * carried) == {}


def test_parallel_links_lead_up_from_one_switch_or_down_to_one():
    cluster = machine("ecmp", nodes=2)
    of = {link.name: number for link, number in zip(cluster.links, parallel_links(cluster).tolist(), strict=True)}
    assert len({of[f"leaf_up 3.{s}"] for s in range(8)}) == 1
    assert len({of[f"leaf_down 3.{s}"] for s in range(8)}) == 1
    assert len({of["leaf_up 3.0"], of["leaf_up 4.0"], of["leaf_down 3.0"], of["leaf_down 4.0"], -1}) == 5
    assert {of[f"nic_up {g}"] for g in range(16)} == {-1}
    globals_ = load_cluster(
        "ideal_rail", nodes=2, nic={"rails": False}, fabric={"name": "dragonfly", "groups": 2, "routers": 4, "global_links": 1}
    )
    of_global = {link.name: n for link, n in zip(globals_.links, parallel_links(globals_).tolist(), strict=True)}
    assert len({of_global[f"global 0.{i}>1.{i}"] for i in range(4)} - {-1}) == 1
    assert {of_global[name] for name in of_global if name.startswith("local")} == {-1}


# ---- PXN


def test_pxn_goes_by_nvlink_to_the_rail_of_the_destination():
    cluster = machine("pxn")
    src, dst = pairs_of(cluster)
    routes = cluster.routes(src, dst)
    check_routes(cluster, src, dst, routes)
    kinds = np.array([link.kind for link in cluster.links])[routes.links]
    assert "leaf_up" not in kinds, "on rails of one leaf each, nothing crosses the spine"
    hops = np.diff(routes.start)
    away = cluster.node_of[src] != cluster.node_of[dst]
    other_rail = cluster.local_of[src] != cluster.local_of[dst]
    assert (hops == np.where(away & other_rail, 4, 2)).all()
    for i in np.flatnonzero(away & other_rail)[::101]:
        relay = src[i] // 8 * 8 + dst[i] % 8
        assert names(cluster, src[i], dst[i]) == [
            f"nvlink_up {src[i]}", f"nvlink_down {relay}", f"nic_up {relay}", f"nic_down {dst[i]}",
        ]  # fmt: skip


def test_pxn_may_go_on_by_ecmp_or_spray():
    fabric = {"name": "leaf_spine", "spines": 4, "nodes_per_leaf": 2}
    for then, lengths in (("ecmp", {6, 4, 2}), ("spray", {2 + 2 + 8, 2 + 8, 4, 2})):
        cluster = load_cluster("ideal_rail", nodes=4, fabric=fabric, routing={"name": "pxn", "then": then})
        src, dst = pairs_of(cluster)
        routes = cluster.routes(src, dst)
        check_routes(cluster, src, dst, routes)
        assert set(np.diff(routes.start)) == lengths
        assert parallel_links(cluster).max() >= 0
    assert collisions(cluster, all_to_all(cluster).link_bytes)["leaf_up"] == pytest.approx(1)


def test_pxn_needs_nvlink():
    with pytest.raises(InputError, match="GPU 1 cannot be reached from GPU 0: no NIC, or no NVLink"):
        load_cluster(
            "ideal_rail", nodes=2, gpus_per_node=2, nvlink={"bandwidth": None}, fabric={"name": "rail_only"},
            routing={"name": "pxn"},
        )  # fmt: skip


# ---- a table


def tabled(*lines, nodes=8, **options):
    return machine("table", nodes=nodes, routes=list(lines), **options)


def test_a_table_of_single_pairs_of_nodes_and_of_links():
    cluster = tabled(
        {"from": "gpu 0", "to": "gpu 9", "via": ["spine 5"]},
        {"from": "node 2", "to": "node 3", "via": ["spine 7"]},
        {"from": "gpu 16", "to": "gpu 25", "via": ["spine 2"]},
        {"from": "gpu 0", "to": "gpu 8", "links": ["nic_up 0", "leaf_up 0.3", "leaf_down 0.3", "nic_down 8"]},
        {"from": "gpu 0", "to": "gpu 10", "via": ["gpu 2"]},
        {"from": "gpu 0", "to": "gpu 11", "links": ["nvlink_up 0", "nvlink_down 3", "nic_up 3", "nic_down 11"]},
    )  # fmt: skip
    assert names(cluster, 0, 9) == ["nic_up 0", "leaf_up 0.5", "leaf_down 1.5", "nic_down 9"]
    assert names(cluster, 17, 26) == ["nic_up 17", "leaf_up 1.7", "leaf_down 2.7", "nic_down 26"]
    assert names(cluster, 17, 25) == ["nic_up 17", "leaf_up 1.7", "leaf_down 1.7", "nic_down 25"]
    assert names(cluster, 16, 25) == ["nic_up 16", "leaf_up 0.2", "leaf_down 1.2", "nic_down 25"], "a GPU goes before its node"
    assert names(cluster, 0, 8) == ["nic_up 0", "leaf_up 0.3", "leaf_down 0.3", "nic_down 8"]
    assert names(cluster, 0, 10) == ["nvlink_up 0", "nvlink_down 2", "nic_up 2", "nic_down 10"]
    assert names(cluster, 0, 11) == ["nvlink_up 0", "nvlink_down 3", "nic_up 3", "nic_down 11"]
    assert names(cluster, 25, 16) == ["nic_up 25", "leaf_up 1.0", "leaf_down 0.0", "nic_down 16"], "all others: shortest"
    src, dst = pairs_of(cluster)
    check_routes(cluster, src, dst, cluster.routes(src, dst))


def test_what_a_table_does_not_hold_goes_by_another_policy():
    line = {"from": "gpu 0", "to": "gpu 9", "via": ["spine 5"]}
    hashed, plain = tabled(line, otherwise="ecmp", seed=4), machine("ecmp", seed=4)
    src, dst = np.nonzero(~np.eye(64, dtype=bool))
    rest = (src != 0) | (dst != 9)
    np.testing.assert_array_equal(hashed.routes(src[rest], dst[rest]).links, plain.routes(src[rest], dst[rest]).links)
    assert names(tabled(line, otherwise="pxn"), 0, 10) == names(machine("pxn"), 0, 10)


def test_a_table_may_be_all_that_joins_two_gpus():
    """Rails without a spine, and one pair on different rails, by hand over a relay; two GPUs to a node."""
    rails = {"name": "rail_only"}
    lines = [
        {"from": f"gpu {a}", "to": f"gpu {b}", "via": [f"gpu {a // 2 * 2 + b % 2}"]}
        for a in range(4) for b in range(4) if a // 2 != b // 2 and a % 2 != b % 2
    ]  # fmt: skip
    cluster = load_cluster("ideal_rail", nodes=2, gpus_per_node=2, fabric=rails, routing={"name": "table", "routes": lines})
    assert names(cluster, 0, 3) == ["nvlink_up 0", "nvlink_down 1", "nic_up 1", "nic_down 3"]
    with pytest.raises(InputError, match="GPU 2 cannot be reached from GPU 1"):
        load_cluster("ideal_rail", nodes=2, gpus_per_node=2, fabric=rails, routing={"name": "table", "routes": lines[:1]})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("gpu 0 to gpu 9", "must be {from"),
        ({"from": "gpu 0", "to": "gpu 9"}, "either via or links"),
        ({"from": "gpu 0", "to": "gpu 9", "via": ["spine 0"], "links": ["nic_up 0"]}, "either via or links"),
        ({"from": "gpu 0", "via": ["spine 0"]}, "does not say to"),
        ({"from": "gpu 0", "too": "gpu 9", "via": ["spine 0"]}, "did you mean to?"),
        ({"from": "gpu 0", "to": "gpu 9", "via": "spine 0"}, "are lists"),
        ({"from": "gpu 0", "to": "gpu 9", "via": []}, "are lists"),
        ({"from": "gpu 0", "to": "gpu 9", "via": ["spin 0"]}, "did you mean spine 0?"),
        ({"from": "gpu 0", "to": "gpu 9", "via": ["gpu 640"]}, "there is no gpu 640"),
        ({"from": "gpu 0", "to": "gpu 64", "via": ["spine 0"]}, "there is no gpu 64; there are 64"),
        ({"from": "node 8", "to": "gpu 0", "via": ["spine 0"]}, "there is no node 8; there are 8"),
        ({"from": "leaf 0", "to": "gpu 0", "via": ["spine 0"]}, "neither gpu N nor node N"),
        ({"from": "gpu 0", "to": "gpu 0", "via": ["spine 0"]}, "to itself"),
        ({"from": "gpu 0", "to": "gpu 9", "via": ["nvswitch 1"]}, "no way from gpu 0 to nvswitch 1"),
        ({"from": "node 0", "to": "node 1", "links": ["nic_up 0", "nic_down 8"]}, "links are of one GPU each"),
        ({"from": "gpu 0", "to": "gpu 9", "links": ["nic_up 0", "nic_down 9"]}, "nic_down 9 does not begin where"),
        ({"from": "gpu 0", "to": "gpu 9", "links": ["nic_up 0", "nic_down 8"]}, "end at GPU 8, not at GPU 9"),
        ({"from": "gpu 0", "to": "gpu 9", "links": ["nic_upp 0"]}, "did you mean nic_up 0?"),
        ({"from": "gpu 0", "to": "gpu 9", "via": ["spine 0", "leaf 0", "spine 0"]}, "crosses leaf_up 0.0 twice"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_is_refused_in_one_line(line, said):
    with pytest.raises(InputError) as caught:
        tabled(line)
    assert said in str(caught.value)
    assert str(caught.value).startswith("topology.routing.routes")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        ({"name": "ecpm"}, ["topology.routing=ecpm", "did you mean ecmp?"]),
        ("ecmp", ["topology.routing=ecmp", "topology.routing.name"]),
        ({"name": "ecmp", "sed": 1}, ["topology.routing.sed=1", "did you mean seed?"]),
        ({"name": "ecmp", "seed": "one"}, ["topology.routing.seed=one", "whole number"]),
        ({"name": "shortest", "seed": 1}, ["topology.routing.seed=1", "no options"]),
        ({"name": "pxn", "then": "sprey"}, ["topology.routing.then=sprey", "did you mean spray?"]),
        ({"name": "table"}, ["topology.routing.routes", "needs it"]),
        ({"name": "table", "routes": []}, ["topology.routing.routes=[]", "must be a list"]),
        ({"name": "table", "routes": "none"}, ["topology.routing.routes=none", "must be a list"]),
        (
            {"name": "table", "routes": [{"from": "gpu 0", "to": "gpu 9", "via": ["spine 0"]}], "otherwise": "sortest"},
            ["topology.routing.otherwise=sortest", "did you mean shortest?"],
        ),
        (
            {"name": "table", "routes": [{"from": "gpu 0", "to": "gpu 9", "via": [f"spine {s}"]} for s in (0, 1)]},
            ["GPU 0 to GPU 9 is written twice"],
        ),
    ],
)
def test_a_policy_that_cannot_be_is_refused_in_one_line(routing, said):
    with pytest.raises(InputError) as caught:
        load_cluster("ideal_rail", nodes=8, fabric=SPINES, routing=routing)
    for words in said:
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- a policy of the user's


def last_spine(wires, src, dst):
    """Always the last of the shortest ways."""
    from clustersim.types import Routes

    inside = wires.nvlink.reaches(src, dst)
    links, start = [], [0]
    for s, d, near in zip(src, dst, inside, strict=True):
        ways = wires.nvlink if near else wires.network
        pair = np.array([s]), np.array([d])
        links += ways.take(*pair, ways.number(*pair) - 1).links.tolist()
        start.append(len(links))
    return Routes(
        start=np.array(start), links=np.array(links), weights=np.ones(len(links)),
        latency=np.add.reduceat(wires.latency[links], start[:-1]),
    )  # fmt: skip


def test_a_policy_of_the_users_own():
    cluster = machine("tests.unit.test_routing_policies:last_spine")
    assert names(cluster, 0, 9) == ["nic_up 0", "leaf_up 0.7", "leaf_down 1.7", "nic_down 9"]
    src, dst = pairs_of(cluster, 200)
    check_routes(cluster, src, dst, cluster.routes(src, dst))


# ---- in bulk


def test_half_a_million_pairs_are_routed_without_a_loop_over_them():
    """2,048 GPUs, 64 leaves, 32 spines, 522,240 pairs: what is made is one array of links, at most 4 to a pair."""
    fabric = {"name": "leaf_spine", "spines": 32, "nodes_per_leaf": 32}
    cluster = load_cluster("ideal_rail", nodes=256, fabric=fabric, routing={"name": "ecmp"})
    src = np.repeat(np.arange(2048), 255)
    dst = (src + 1 + 8 * np.tile(np.arange(255), 2048)) % 2048
    routes = cluster.routes(src, dst)
    assert src.size == 522_240
    assert routes.links.size <= 4 * src.size
    few = np.arange(0, src.size, 997)
    check_routes(cluster, src[few], dst[few], cluster.routes(src[few], dst[few]))
    leaf_up = np.array([link.kind == "leaf_up" for link in cluster.links])
    assert (np.bincount(routes.links, minlength=leaf_up.size)[leaf_up] > 0).all(), "every uplink is used"
