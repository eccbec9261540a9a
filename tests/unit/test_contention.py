"""What a training step sends beside its exchanges shares links with them: two flows by hand, one group against the cluster."""

from dataclasses import replace

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.config import compose
from clustersim.engine.collectives import ring_s, wires_of
from clustersim.engine.pipeline_play import play_pipeline
from clustersim.engine.pipelines import one_f_one_b
from clustersim.engine.program import COMMUNICATE, Op, Work, play_program
from clustersim.engine.stages import ordered
from clustersim.network import bound, fluid
from clustersim.parallel import Parallel
from clustersim.training.beside import Beside, asides_of, ways_of
from clustersim.training.gradients import WEIGHT, Held, often, sharers
from clustersim.training.sharing import collectives
from clustersim.training.step import train
from clustersim.types import InputError, Routes, independent
from tests.reports import TRAINED

GB = 1e9
NIC = {"bandwidth": "2 GB/s", "achievable": "1 GB/s", "latency": 0}         # NCCL gets 1 GB/s out of it as well
NVLINK = {"bandwidth": "20 GB/s", "achievable": "10 GB/s", "latency": 0}
DISPATCH = Op(stream=COMMUNICATE, part="dispatch", layer=0)
NOBODY = independent(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def machine(nodes, per_node, name="ideal_rail", **more):
    return load_cluster(name, **{"nodes": nodes, "gpus_per_node": per_node, "nvlink": NVLINK, "nic": NIC} | more)


def sent(*rows):
    """Transfers from (from, to, GB)."""
    src, dst, size = zip(*rows, strict=True)
    return independent(np.array(src), np.array(dst), np.array(size) * GB)


def asides(cluster, parallel, send=1.0):
    wires = wires_of(cluster)
    return asides_of(parallel, wires, ways_of(cluster, cluster), send_bytes=send * GB, gradient_bytes=4.0)


def played(cluster, exchange, others, network=fluid):
    """(when each GPU is through with an exchange, when each of the others is)."""
    ran = play_program(
        cluster, network, [DISPATCH], lambda *_: Work(seconds={}, transfers={"dispatch": exchange}),
        beside=[each.in_turn for each in others],
    )  # fmt: skip
    return ran.end[0], np.array(ran.beside)


def test_a_send_and_an_exchange_get_half_a_nic_each():
    """2 GB to the other node and 1 GB to another stage over a NIC of 1 GB/s: half each for 2 s, then 1 GB alone: 3 s."""
    cluster = machine(2, 1)
    others = asides(cluster, Parallel(gpus=4, pipeline=2, expert=2))(Beside(sends=(True,)))
    exchange = sent((0, 1, 2.0), (1, 0, 2.0))
    ends, then = played(cluster, exchange, others)
    hop = wires_of(cluster).nic_hop_s
    np.testing.assert_allclose(ends, 3.0, rtol=1e-12)
    assert then == pytest.approx(2.0 + hop, rel=1e-12)
    assert others[0].alone_s == pytest.approx(1.0 + hop, rel=1e-12)
    alone, then = played(cluster, exchange, others, bound)
    assert (alone[0], then[0]) == (pytest.approx(2.0), pytest.approx(others[0].alone_s)), "a bound does not share"


def test_a_send_is_as_slow_as_the_busier_of_its_two_ends():
    """GPU 0 sends 2 GB, GPU 1 nothing: both sends meet them, the one out of GPU 0 there, the one into GPU 1 there."""
    cluster = machine(2, 1)
    others = asides(cluster, Parallel(gpus=4, pipeline=2, expert=2))(Beside(sends=(True,)))
    ends, then = played(cluster, sent((0, 1, 2.0)), others)
    assert ends[1] == pytest.approx(3.0)
    assert then[0] == pytest.approx(2.0 + wires_of(cluster).nic_hop_s)


def test_a_ring_is_through_when_its_slowest_port_is():
    """Gradients of 1 GB over 4 nodes: 3/4 of it passes every NIC. Only GPU 0 sends besides, 3 GB, so the ring has half a NIC
    there and is through after 1.5 s, not 0.75; by then 2.25 GB are left, which have the NIC for themselves."""
    cluster, parallel = machine(4, 1), Parallel(gpus=4, expert=4, zero=1)
    others = asides(cluster, parallel)(Beside(reduce=1.0, held=Held(dense=GB / 4, experts=0.0)))
    ends, then = played(cluster, sent((0, 1, 3.0)), others)
    late = others[0].alone_s - 0.75
    assert others[0].in_turn[0].n == 4
    assert then[0] == pytest.approx(1.5 + late, rel=1e-9)
    assert ends[1] == pytest.approx(0.75 + 3.0)


def test_what_shares_no_link_changes_nothing():
    """An exchange over NVLink, gradients and sends over NICs: both as they are alone, to the last bit."""
    cluster, parallel = machine(1, 4), Parallel(gpus=16, tensor=4, pipeline=2, expert=4, zero=1)
    others = asides(cluster, parallel)(Beside(sends=(True,), reduce=1.0, held=Held(dense=GB, experts=0.0)))
    exchange = sent((0, 1, 2.0), (1, 2, 1.0), (3, 0, 0.5))
    ends, then = played(cluster, exchange, others[:1])
    assert (ends == played(cluster, exchange, ())[0]).all()
    assert then[0] == pytest.approx(others[0].alone_s, rel=1e-12)


SPLITS = {      # GPUs of a node of the group's, of the cluster's; sizes
    "node by node": (4, 2, 2, {"gpus": 16, "expert": 8}),
    "inside tensor groups": (2, 4, 4, {"gpus": 32, "tensor": 4, "expert": 8, "pipeline": 2}),
    "half a node": (1, 2, 4, {"gpus": 16, "expert": 2}),
    "tensor of half a node": (1, 2, 4, {"gpus": 16, "tensor": 2, "expert": 2}),
    "one node": (1, 4, 4, {"gpus": 4, "expert": 4}),
    "one node each": (1, 4, 4, {"gpus": 16, "expert": 4, "context": 2}),
    "experts cut": (2, 4, 4, {"gpus": 32, "expert": 4, "expert_tensor": 2, "tensor": 2}),
}  # fmt: skip


@pytest.mark.parametrize("twin", [None, 1])
@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("name", SPLITS)
def test_alone_collectives_take_what_the_closed_form_says_and_carry_its_bytes(name, zero, twin):
    nodes, inside, per_node, sizes = SPLITS[name]
    pipeline = 2 if twin else sizes.get("pipeline", 1)
    sizes = sizes | {"gpus": sizes["gpus"] * pipeline // sizes.get("pipeline", 1), "pipeline": pipeline, "zero": zero}
    parallel, cluster = Parallel(**sizes), machine(nodes, inside)
    wires = wires_of(machine(max(2, nodes), per_node))
    made = asides_of(parallel, wires, ways_of(cluster, cluster), send_bytes=0.0, gradient_bytes=4.0)
    beside = Beside(reduce=1.0, gather=1.0 if zero else 0.0, held=Held(dense=3 * GB, experts=5 * GB), twin=twin)
    for aside, each, passes in zip(made(beside), (4.0, WEIGHT), (1 if zero else 2, 1), strict=False):
        _, then = played(cluster, NOBODY, [aside])
        closed, by_nic, by_nvlink = 0.0, np.zeros(cluster.n_gpus), np.zeros(cluster.n_gpus)
        for weights, groups in zip((3 * GB, 5 * GB), sharers(parallel, twin), strict=True):
            group, n = groups[0], groups.shape[1]
            closed += ring_s(weights * each, group, wires, passes)
            members = np.bincount(group // per_node)
            members = int(members.max())
            through = passes * weights * each * (n - 1) / n
            if n > members:
                by_nic += through / members
            if members > 1:
                by_nvlink += through
        assert then[0] == pytest.approx(closed, rel=1e-9) == aside.alone_s
        carried = np.zeros(len(cluster.links))
        for flows in aside.in_turn:
            ways = flows.ways
            np.add.at(carried, ways.links, np.repeat(flows.nbytes, np.diff(ways.start)) * ways.weights)
        for kind, expected in (("nic", by_nic), ("nvlink", by_nvlink)):
            for way in ("up", "down"):
                ports = [link.id for link in cluster.links if link.kind == f"{kind}_{way}"]
                np.testing.assert_allclose(carried[ports], expected, rtol=1e-9, err_msg=f"{aside.what} {kind}_{way}")
        inner = [link.id for link in cluster.links if link.kind not in ("nic_up", "nic_down", "nvlink_up", "nvlink_down")]
        assert not carried[inner].any()


LEAVES = {"nic": NIC | {"oversubscription": 2.0, "rails": False}, "fabric": {"name": "leaf_spine", "spines": 1}}
RAILS = {"nic": NIC | {"oversubscription": 2.0, "rails": True}, "fabric": {"name": "leaf_spine", "spines": 1}}


@pytest.mark.parametrize("fabric", [{}, LEAVES, RAILS], ids=["crossbar", "leaves", "rails"])
def test_one_group_stands_for_a_cluster_of_groups_that_do_the_same(fabric):
    """Two stages of one group each, both exchanging and sending to the other at once: every time is that of one group, whose
    machine has its share of the uplinks, and whose sends come in where they go out."""
    rng, n = np.random.default_rng(5), 8
    one, both = machine(4, 2, **fabric), machine(8, 2, **fabric)
    src, dst = np.nonzero(~np.eye(n, dtype=bool))
    size = rng.exponential(1.0, src.size) * GB
    others = asides(one, Parallel(gpus=2 * n, pipeline=2, expert=n), send=5.0)(Beside(sends=(True,)))
    ends, then = played(one, independent(src, dst, size), others)
    away = independent(np.arange(2 * n), (np.arange(2 * n) + n) % (2 * n), np.full(2 * n, 5 * GB))
    away = [replace(others[0], in_turn=(away,))]
    exchange = independent(np.concatenate((src, src + n)), np.concatenate((dst, dst + n)), np.tile(size, 2))
    all_ends, all_then = played(both, exchange, away)
    np.testing.assert_allclose(all_ends, np.tile(ends, 2), rtol=1e-9)
    assert all_then[0] == pytest.approx(then[0] - others[0].in_turn[0].ways.latency[0], rel=1e-9), "all but NCCL's hop"
    alone, _ = played(one, independent(src, dst, size), ())
    assert ends.max() > 1.05 * alone.max(), "sharing decides"


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize(("order", "virtual"), [("one_f_one_b", 1), ("interleaved", 2), ("combined", 2), ("dualpipe", 1)])
def test_collectives_beside_passes_are_all_that_a_step_sends(order, virtual, zero):
    pipeline = ordered(order, 4, 8, virtual)
    rounds = 8 // (4 if virtual > 1 else 1)
    for tasks in pipeline.tasks:
        found = collectives(tasks, zero, rounds, Held(dense=1.0, experts=1.0), None)
        reduces, gathers = often(zero, rounds)
        assert sum(each.reduce for each in found) == pytest.approx(reduces)
        assert sum(each.gather for each in found) == pytest.approx(gathers if zero else 0)


def test_a_pass_waits_for_what_comes_later():
    """Two stages, one micro-batch, passes of 1 s, 0.25 s between them, 0.5 s more where the next pass begins at once.

    Device 0 has nothing behind its first forward pass but that of the second micro-batch, which begins at once: the first is
    with device 1 at 1.75, the second, with nothing behind it for a while, at 2.25 but taken up at 2.75.
    """
    asked = []

    def beside(device, i, ago):
        asked.append((device, i, ago))
        return 1.0, 0.5 if ago < 0.25 else 0.0

    flow = play_pipeline(one_f_one_b(2, 2), lambda tasks: 1.0, lambda a, b: 0.25, beside)
    assert flow.begun[1][0] == 1.75
    assert (0, 0, np.inf) in asked
    assert (0, 1, 0.0) in asked
    plain = play_pipeline(one_f_one_b(2, 2), lambda tasks: 1.0, lambda a, b: 0.25)
    assert plain.begun[1][0] == 1.25


WIDE = [
    *(text for text in TRAINED if not text.startswith("topology")), "topology.nodes=8", "topology.gpus_per_node=2",
    "trace=sampled", "parallel.zero=1", "memory=ignore",
]  # fmt: skip


def test_a_step_whose_groups_span_nodes_takes_longer_and_hides_its_gradients_later():
    deep = [*WIDE, "parallel.pipeline=4", "compute=none"]
    alone, shared = (train(compose([*deep, f"workload.contention={word}"])) for word in ("false", "true"))
    assert shared.step_s > alone.step_s
    blocks = [block for device in shared.blocks for block in device]
    assert sum(block.reduce_late_s for block in blocks) > 0
    assert sum(block.gather_late_s for block in blocks) > 0
    assert sum(block.sends_late_s for block in blocks) > 0
    for before, after in zip(alone.blocks, shared.blocks, strict=True):
        assert all(two.seconds >= one.seconds * (1 - 1e-9) for one, two in zip(before, after, strict=True))
    assert any("share" in note for note in shared.notes)


@pytest.mark.parametrize("more", [
    ["network=bound"],
    ["topology.gpus_per_node=4", "topology.nodes=4", "parallel.tensor=4", "parallel.expert=4"],
], ids=["a bound", "no link in common"])  # fmt: skip
def test_where_nothing_is_shared_the_step_is_the_same(more):
    alone, shared = (train(compose([*WIDE, *more, f"workload.contention={word}"])) for word in ("false", "true"))
    assert shared.step_s == pytest.approx(alone.step_s, rel=1e-12)
    assert shared.reduce_s == pytest.approx(alone.reduce_s, rel=1e-12)
    for one, two in zip(alone.flow.ended, shared.flow.ended, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_contention_is_true_or_false():
    with pytest.raises(InputError, match=r"workload.contention=1: must be true or false"):
        train(compose([*WIDE, "workload.contention=1"]))


def test_ways_may_be_given_in_place_of_the_machines():
    """One flow over the way out of GPU 0 and into GPU 3 of a crossbar, named from 0 to 0."""
    cluster = machine(4, 1)
    names = {link.name: link.id for link in cluster.links}
    ways = Routes(
        start=np.array([0, 2]), links=np.array([names["nic_up 0"], names["nic_down 3"]]), weights=np.array([1.0, 2.0]),
        latency=np.zeros(1),
    )
    flow = replace(sent((0, 0, 1.0)), ways=ways)
    ran = play_program(cluster, fluid, [DISPATCH], lambda *_: Work(seconds={}, transfers={"dispatch": flow}))
    assert ran.step_s == pytest.approx(2.0), "a byte takes two of the way in"
    assert ran.exchanges[0].link_bytes[names["nic_down 3"]] == pytest.approx(2 * GB)
