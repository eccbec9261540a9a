"""Schedules of a forward pass: published closed forms by the executor, nothing lost or computed twice, and the plain order."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from clustersim import load_cluster, simulate
from clustersim.assembling import assemble
from clustersim.config import compose
from clustersim.engine.cutting import cut_of, routing_of, workload_of
from clustersim.engine.gpu import PARTS, SLICES, LayerWork, play
from clustersim.engine.overlapped import play_overlapped
from clustersim.engine.program import COMPUTE, Work
from clustersim.engine.schedules import chunked, in_order, staggered, two_batch, with_kernels
from clustersim.exchange.software import sm_seconds
from clustersim.kernels import load_kernel
from clustersim.lanes import lanes_from
from clustersim.network import bound, fluid
from clustersim.types import InputError, Routing, Workload, independent

GB = 1e9
NETWORKS = pytest.mark.parametrize("network", [fluid, bound])
RUN = ["topology.nodes=2", "workload.tokens_per_gpu=64", "model.n_layers=3"]


def machine(n=2):
    """One node: every GPU has one port of 1 GB/s each way."""
    nvlink = {"bandwidth": "1 GB/s", "latency": 0}
    return load_cluster("ideal_rail", nodes=1, gpus_per_node=n, nvlink=nvlink, nic={"bandwidth": None})


def swap(seconds):
    return independent(np.array([0, 1]), np.array([1, 0]), np.full(2, seconds * GB))


def step_s(schedule, n_layers, network, pieces=1, **times):
    """Seconds of a pass whose pieces take so long each: attention A, dispatch D, experts G, combine C, shared S, other O, the way
    into attention E, and an exchange's own kernels K (each of the two that send; those that take in half of it)."""

    def work_of(layer, cut):
        own = {"attention": times["A"], "shared": times.get("S", 0), "other": times.get("O", 0), "expert": times["G"] / pieces}
        own |= {"enter": times.get("E", 0)} | {name: times.get("K", 0) for name in ("send", "back")}
        own |= {name: times.get("K", 0) / 2 for name in ("take", "home")}
        return Work(
            seconds={name: np.full(2, float(s)) for name, s in own.items()},
            transfers={"dispatch": swap(times["D"] / pieces), "combine": swap(times["C"] / pieces)},
        )

    return play_overlapped(machine(), network, n_layers, schedule, work_of).step_s


@NETWORKS
@pytest.mark.parametrize(("layers", "overlap", "serial"), [(1, 14, 20), (2, 26, 40), (4, 50, 80)])
def test_two_micro_batches_of_3_2_3_2(network, layers, overlap, serial):
    """Computing is 12 a layer; the last combine of 2 is left. One after the other two batches take 20 a layer."""
    times = {"A": 3, "D": 2, "G": 3, "C": 2}
    assert step_s(two_batch([True] * layers), layers, network, **times) == pytest.approx(overlap, rel=1e-12)
    assert 2 * step_s(in_order([True] * layers), layers, network, **times) == pytest.approx(serial, rel=1e-12)


@NETWORKS
@pytest.mark.parametrize(("experts", "chunks", "expected"), [
    (6, 1, 14), (6, 2, 10), (6, 4, 8), (6, 8, 8), (2, 1, 10), (2, 2, 8), (2, 4, 8),
])  # fmt: skip
def test_chunks_of_an_exchange_of_4_and_4(network, experts, chunks, expected):
    """One communication stream, all dispatches first: max(D + C, D / n + G + C / n)."""
    times = {"A": 0, "D": 4, "G": experts, "C": 4}
    assert step_s(chunked([True], chunks=chunks), 1, network, chunks, **times) == pytest.approx(expected, rel=1e-12)


def test_shared_experts_hide_behind_the_dispatch():
    """S = 1 beside D = 2 costs nothing, and 1 after the combine; S = 3 shows the 1 that the dispatch does not cover."""
    times = {"A": 3, "D": 2, "G": 3, "C": 2}
    assert step_s(in_order([True] * 2, shared="hidden"), 2, fluid, **times, S=1) == pytest.approx(20, rel=1e-12)
    assert step_s(in_order([True] * 2), 2, fluid, **times, O=1) == pytest.approx(22, rel=1e-12)
    assert step_s(in_order([True] * 2, shared="hidden"), 2, fluid, **times, S=3) == pytest.approx(22, rel=1e-12)


@NETWORKS
def test_a_half_two_stages_behind_waits_where_its_next_stage_begins(network):
    """E0 0-1, A0 1-3, D0 3-6 with S0 3-4 and E1 4-5 beside it, G0 6-7, C0 7-11 with A1 7-9, O0 11-12; then the second half sends
    (12-15 with S1), computes 15-16, and waits for its combine until 20: 21 in all. Without exchanges all is computing."""
    times = {"E": 1, "A": 2, "S": 1, "G": 1, "O": 1}
    assert step_s(staggered([True]), 1, network, **times, D=3, C=4) == pytest.approx(21, rel=1e-12)
    whole = step_s(staggered([True] * 6), 6, network, **times, D=1e-9, C=1e-9)
    assert whole == pytest.approx(6 * 12, rel=1e-6)


@NETWORKS
def test_a_kernel_that_sends_takes_its_time_of_computing(network):
    """Two halves that hide their exchanges compute 2 x (3 + 3), and 2 x 3 more with kernels of 1 and 1/2, and wait at the end."""
    times = {"A": 3, "G": 3, "D": 2, "C": 2}
    plain, busy = (step_s(made, 1, network, **times, K=1) for made in (two_batch([True]), with_kernels(two_batch([True]))))
    assert plain == pytest.approx(14, rel=1e-12)
    # A 0-3, send 3-4, A 4-7, send 7-8 (the first dispatch is there at 5, the second at 9), take and experts 8-11.5, back to 12.5,
    # take 13, experts 16, back 17, home of the first 17.5; the second combine arrives at 18, home 18.5
    assert busy == pytest.approx(18.5, rel=1e-12)


def test_kernels_that_are_called_are_busy_with_what_they_issue():
    """One message of 1,000 bytes to each of 8 GPUs of another node, 39 ns each, after a round; what came is read and written."""
    made = assemble(compose([
        "topology=h100_sxm", "topology.nodes=2", "exchange=deepep_low_latency", "model=deepseek_v3", "trace=balanced",
        "workload=decode", "workload.tokens_per_gpu=8", "schedule=two_batch", "memory=ignore", "network=bound",
    ]))  # fmt: skip
    kernel = load_kernel("deepep_low_latency")
    message, round_s = kernel["message"], kernel["round"]
    plain = independent(np.zeros(8, int), np.arange(8, 16), np.full(8, 1000.0))
    sent = replace(
        plain, release=np.full(8, round_s), lanes=lanes_from((0, plain.src, np.full(8, 1 / 1000)), n_gpus=16),
    )  # fmt: skip
    busy, taken = sm_seconds("deepep_low_latency", made.cluster)(sent, added=False)
    assert busy[0] == pytest.approx(round_s + 8 * message, rel=1e-9)
    assert not busy[1:].any()
    bandwidth = kernel["copy_share"] * made.cluster.gpu.memory_bandwidth
    np.testing.assert_allclose(taken, np.repeat([0, 2 * 1000 / bandwidth], 8), rtol=1e-12)
    assert sm_seconds("deepep_normal", made.cluster) is None
    assert made.schedule.kernels


def test_every_model_is_cut_where_it_enters_its_mixers():
    """The way in and the rest are as long as the whole, and either takes time."""
    for model in ("deepseek_v2_lite", "qwen3_30b_a3b", "jamba_1_5_large"):
        few = ["topology=ideal_rail", "topology.nodes=1", f"model={model}", "trace=balanced", "workload=decode", "memory=ignore"]
        few += ["workload.tokens_per_gpu=8", "network=bound", "exchange=direct", "workload.context_spread=0"]
        whole, cut = (simulate([*few, f"schedule={name}", "schedule.shared=hidden"]) for name in ("two_batch", "staggered"))
        columns = [run.tables["gpus"]["attention_s"] for run in (whole, cut)]
        np.testing.assert_allclose(columns[1], columns[0], rtol=1e-9)


@NETWORKS
def test_the_plain_program_is_the_forward_pass(network):
    """The same work by the executor of programs and by the one of plain passes: every GPU's parts and every exchange agree."""
    rng, cluster = np.random.default_rng(4), load_cluster("ideal_rail", nodes=2, gpus_per_node=2)
    src, dst = (end[~np.eye(4, dtype=bool)] for end in np.indices((4, 4)))
    seconds = [{name: rng.uniform(1, 3, 4) for name in ("attention", "expert", "other")} for _ in range(3)]
    sent = [{phase: independent(src, dst, rng.uniform(1e9, 9e10, 12)) for phase in ("dispatch", "combine")} for _ in range(3)]
    moe = [True, False, True]

    def plain(layer):
        work = {f"{name}_s": seconds[layer][name] for name in ("attention", "expert", "other")}
        work["expert_s"] = work["expert_s"] * moe[layer]            # nothing is sent to a dense layer's
        return LayerWork(**work, **(sent[layer] if moe[layer] else {"dispatch": None, "combine": None}))

    one = play(cluster, network, 3, plain)
    works = [Work(seconds=own, transfers=away) for own, away in zip(seconds, sent, strict=True)]
    other = play_overlapped(cluster, network, 3, in_order(moe), lambda layer, cut: works[layer])
    assert other.step_s == pytest.approx(one.step_s, rel=1e-12)
    for name in PARTS:
        np.testing.assert_allclose(other.parts()[name], one.parts()[name], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other.marks[[0, 2]], one.marks[[0, 2]], rtol=1e-12)
    for a, b in zip(one.exchanges, other.exchanges, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(x.wait_s, y.wait_s, rtol=1e-9, atol=1e-9)
                np.testing.assert_allclose(x.link_bytes, y.link_bytes)


@pytest.mark.parametrize("make", [in_order, two_batch, chunked, staggered])
def test_every_piece_of_every_layer_is_computed_and_exchanged_once(make):
    schedule = make([True, False, True], shared="hidden")
    found = sorted((op.layer, op.part, op.batch) for op in schedule.ops)
    own, cuts = range(0, schedule.cuts, schedule.chunks), range(schedule.cuts)
    expected = [(layer, part, b) for layer in (0, 2) for part in ("attention", "shared", "other") for b in own]
    expected += [(layer, part, c) for layer in (0, 2) for part in ("dispatch", "expert", "combine") for c in cuts]
    expected += [(1, part, b) for part in ("attention", "other") for b in own]
    expected += [(layer, "enter", b) for layer in range(3) for b in own if schedule.enters]
    assert found == sorted(expected)
    assert all(place < i for i, op in enumerate(schedule.ops) for place in op.after)
    assert {op.part for op in schedule.ops if op.stream == COMPUTE} == {
        "attention", "shared", "expert", "other", *(["enter"] if schedule.enters else []),
    }  # fmt: skip


def test_pieces_are_even_runs_that_keep_a_sequence_s_tokens_together():
    source = np.repeat([0, 1], [12, 6])
    index = np.concatenate([np.arange(12), np.arange(6)])
    tokens = Workload(source=source, index=index, context=index + 1, choose=lambda layer: None)
    assert cut_of(tokens, 2, 2).tolist() == [0] * 6 + [1] * 6 + [0] * 3 + [1] * 3
    assert cut_of(tokens, 2, 2, per_sequence=3).tolist() == [0] * 6 + [1] * 6 + [0] * 3 + [1] * 3
    assert cut_of(tokens, 2, 4, per_sequence=3).tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [0] * 3 + [2] * 3
    second = workload_of(tokens, cut_of(tokens, 2, 2) == 1)
    assert second.index.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert second.context.tolist() == [7, 8, 9, 10, 11, 12, 4, 5, 6]
    ids = np.arange(18)[:, None]
    routing = Routing(asked=ids, assigned=ids, weights=None, source=source, index=index, capacity=None)
    assert routing_of(routing, cut_of(tokens, 2, 2) == 1).asked.ravel().tolist() == [6, 7, 8, 9, 10, 11, 15, 16, 17]


@pytest.mark.parametrize("network", ["fluid", "bound"])
@pytest.mark.parametrize("schedule", ["two_batch", "chunked", "in_order", "staggered"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_overlap_moves_the_same_bytes_and_is_no_slower_than_its_parts(network, schedule, phase):
    """Without replicas a piece chooses as the whole: rows and bytes between GPUs are the same."""
    ask = [*RUN, f"network={network}", f"workload={phase}", "placement.slots=32", "compute=roofline", "exchange=direct"]
    ask += ["workload.tokens_per_gpu=64", "workload.context_spread=0"][: 1 + (phase == "decode")]
    plain = simulate(ask)
    over = simulate([*ask, f"schedule={schedule}", "schedule.shared=hidden"])
    assert over.tables["experts"].equals(plain.tables["experts"])
    np.testing.assert_allclose(over.tables["links"]["dispatch_bytes"], plain.tables["links"]["dispatch_bytes"])
    np.testing.assert_allclose(over.tables["pairs"]["combine_bytes"], plain.tables["pairs"]["combine_bytes"])
    times = over.tables["gpus"].select(PARTS).sum_horizontal().to_numpy().reshape(3, -1).sum(axis=0)
    np.testing.assert_allclose(times, over.summary["step_s"], rtol=1e-9)
    busy = over.tables["gpus"].select("attention_s", "expert_s", "other_s").sum_horizontal().to_numpy().reshape(3, -1).sum(axis=0)
    assert over.summary["step_s"] >= busy.max() * (1 - 1e-12)


def test_sms_of_an_exchange_are_taken_from_what_computes_beside_it():
    """Two batches with a kernel that holds SMs compute longer than with the same exchange told to be done by one SM pair less."""
    ask = [*RUN, "exchange=deepep_normal", "workload.tokens_per_gpu=512", "schedule=two_batch", "network=bound"]
    few, many = (simulate([*ask, f"exchange.sms={sms}"]).summary["compute_s"] for sms in (24, 96))
    apart = [simulate([*ask, f"exchange.sms={sms}", "schedule=in_order"]).summary["compute_s"] for sms in (24, 96)]
    assert apart[0] == apart[1], "nothing computes beside an exchange"
    assert many > few


def test_a_time_line_of_overlapping_streams(tmp_path):
    result = simulate([*RUN, "schedule=two_batch", "export.timeline=true", f"output={tmp_path}"])
    recorder, played = result.timeline.args
    assert recorder.layers == [0, 1, 2]
    slices = played.slices()
    assert {each.name for each in slices} == set(SLICES)
    for gpu in (0, 7):
        own = sorted((each.begin[gpu], each.end[gpu]) for each in slices if each.end[gpu] > each.begin[gpu])
        assert all(end <= begin + 1e-12 for (_, end), (begin, _) in pairwise(own)), "one thing at a time"
    result.save()


@pytest.mark.parametrize(("given", "said"), [
    (["schedule=two_batch", "causes=true"], "causes=true: is built for schedule=in_order"),
    (["schedule=two_batch", "workload.tokens_per_gpu=1"], "workload.tokens_per_gpu=1 is below the 2 pieces"),
    (["schedule=chunked", "schedule.chunks=0"], "schedule.chunks=0: must be a whole number from 1 up"),
    (["schedule=chunked", "schedule.shared=hiden"], "schedule.shared=hiden: must be after or hidden; did you mean hidden?"),
    (["schedule=two_batch", "model=llama_3_2_1b"], "schedule=two_batch: model=llama_3_2_1b exchanges nothing"),
    (["schedule=two_batch", "exchange=trtllm_one_sided", "topology.nodes=1"], "exchange: holds all 132 SMs"),
    (["schedule=two_batch", "capacity.factor=1.0", "capacity.pad=true", "exchange=direct"], "capacity.pad=true: is built for"),
    (["schedule=two_bach"], "did you mean two_batch?"),
])  # fmt: skip
def test_what_a_schedule_cannot_is_refused(given, said):
    with pytest.raises(InputError) as refused:
        simulate([*RUN[:2], *given] if "topology.nodes=1" not in given else given)
    assert said in str(refused.value)
