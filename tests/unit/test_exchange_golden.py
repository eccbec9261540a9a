"""Bytes on the wire of a worked example, 2 nodes of 2 GPUs, 8 experts, 3 choices, two tokens each; every figure by hand.

Copies: direct [[2,1,2,1],[1,2,1,2],[1,2,2,1],[2,1,1,2]]; per GPU [[1,1,2,1],[1,1,1,1],[1,1,1,1],[1,1,1,2]]; per node over
NICs 0->2: 2, 1->3: 2, 2->0: 1, 3->1: 2 and forwarded 2 each way inside both nodes.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import exchange
from clustersim.exchange.collective import in_channels
from clustersim.exchange.payloads import PAYLOADS, payload_bytes
from clustersim.exchange.rounds import delta_order
from clustersim.kernels import load_kernel, trying
from clustersim.pick import pick
from clustersim.types import InputError, Placement, Routing, independent
from tests.placed import contiguous

GPU = SimpleNamespace(name="some GPU", sms=132, memory_bandwidth=3e12, memory_latency=754e-9, l2_bandwidth=None, fp4_flops=None)
PAIR = SimpleNamespace(n_gpus=4, n_nodes=2, gpus_per_node=2, node_of=np.arange(4) // 2, local_of=np.arange(4) % 2, gpu=GPU)
RACK = SimpleNamespace(**{**vars(PAIR), "n_nodes": 1, "gpus_per_node": 4, "node_of": np.zeros(4, int), "local_of": np.arange(4)})
FP8 = SimpleNamespace(top_k=3, hidden=7168, dispatch_token_bytes=7392.0, combine_token_bytes=14336.0)
TOKENS = [[0, 1, 4], [2, 4, 6], [2, 3, 5], [0, 6, 7], [4, 5, 6], [1, 2, 3], [6, 0, 1], [5, 7, 2]]
DIRECT = np.array([[2, 1, 2, 1], [1, 2, 1, 2], [1, 2, 2, 1], [2, 1, 1, 2]])
RANKS = np.array([[1, 1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2]])
NICS = np.array([[0, 0, 2, 0], [0, 0, 0, 2], [1, 0, 0, 0], [0, 2, 0, 0]])
FORWARDED = np.array([[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]])
PXN_NVLINK = np.array([[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3], [0, 0, 3, 0]])
PXN_NICS = np.array([[0, 0, 3, 0], [0, 0, 0, 3], [3, 0, 0, 0], [0, 3, 0, 0]])
OFF = 1 - np.eye(4, dtype=int)


def routing(ids, per_gpu=2, n=4):
    ids = np.array(ids)
    return Routing(
        asked=ids, assigned=ids, weights=None, source=np.repeat(np.arange(n), per_gpu), index=np.tile(np.arange(per_gpu), n),
        capacity=None,
    )


def matrix(name, phase, cluster=PAIR, model=FP8, ids=TOKENS, **options):
    t = pick(exchange, name, **options)(phase, routing(ids), contiguous(8, 8, 4), cluster, model)
    total = np.zeros((4, 4))
    np.add.at(total, (t.src, t.dst), t.nbytes)
    return total


NORMAL = (7424, 14368)         # 7392 + 8 + 24 and 14336 + 8 + 12, in multiples of 16
CASES = {       # name: copies [from, to] of a dispatch, bytes of one to dispatch and to combine, cluster, options
    "direct": (DIRECT * OFF, 7392, 14336, PAIR, {}), "pairwise": (DIRECT * OFF, 7392, 14336, PAIR, {}),
    "nccl_alltoall": (DIRECT * OFF, 7392, 14336, PAIR, {}),
    "rank_dedup": (RANKS * OFF, 7392, 14336, PAIR, {}),
    "node_dedup": (NICS + FORWARDED, *NORMAL, PAIR, {}), "deepep_normal": (NICS + FORWARDED, *NORMAL, PAIR, {}),
    "deepep_v2": (NICS + FORWARDED, *NORMAL, PAIR, {}), "hybrid_ep": (NICS + FORWARDED, 7392, 14336, PAIR, {}),
    "deepep_low_latency": (DIRECT * OFF, 7408, 14336, PAIR, {}), "deepep_low_latency_rdma": (DIRECT * OFF, 7408, 14336, PAIR, {}),
    "trtllm_one_sided": (RANKS * OFF, 7392 + 24, 14336, RACK, {}),
    "allgather": (2 * np.kron(OFF[:2, :2], np.eye(2)) + 4 * np.kron(np.eye(2), OFF[:2, :2]), 7392, 14336, PAIR, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_the_worked_example_there_and_transposed_back(name):
    copies, there, back, cluster, options = CASES[name]
    big = {"dispatch": 1.0, "combine": 1.0}
    if name == "nccl_alltoall":         # up to 16 KiB a pair goes with a flag beside every word
        big = {"dispatch": np.where(copies * 7392 <= 16384, 2, 1), "combine": np.where(copies.T * 14336 <= 16384, 2, 1)}
    np.testing.assert_array_equal(matrix(name, "dispatch", cluster, **options), copies * there * big["dispatch"])
    np.testing.assert_array_equal(matrix(name, "combine", cluster, **options), copies.T * back * big["combine"])


@pytest.mark.parametrize("name", ["pxn", "hierarchical_2d"])
def test_relays_move_the_same_bytes_over_one_rail_both_ways(name):
    np.testing.assert_array_equal(matrix(name, "dispatch"), (PXN_NVLINK + PXN_NICS) * 7392)
    home = DIRECT.T
    relayed, nics = np.zeros((4, 4)), np.zeros((4, 4))
    for a in range(4):
        for b in range(4):
            relay = a // 2 * 2 + b % 2
            relayed[a, relay] += home[a, b] * (a != relay)
            nics[relay, b] += home[a, b] * (a // 2 != b // 2)
    np.testing.assert_array_equal(matrix(name, "combine"), (relayed + nics) * 14336)
    assert nics.sum() == 12


def test_experts_cut_over_two_gpus_get_every_copy_twice():
    """GPU j sends to GPU j of the other node 6 copies (all choices of its tokens there), keeps the rest; both GPUs of a node
    hand the other what came to them, own tokens included: 3 choices of 4 tokens each of 2 parities, 24 / 4 = 6 a GPU."""
    got = matrix("tensor_expert", "dispatch", tensor=2) / 7392
    far = np.array([[0, 0, 3, 0], [0, 0, 0, 3], [3, 0, 0, 0], [0, 3, 0, 0]])
    np.testing.assert_array_equal(got, far + 6 * np.kron(np.eye(2), OFF[:2, :2]))
    np.testing.assert_array_equal(matrix("tensor_expert", "combine", tensor=2) / 14336, got.T)


def test_between_nodes_dedup_saves_what_it_should():
    outside = 1 - np.kron(np.eye(2), np.ones((2, 2)))
    between = {name: (CASES[name][0] * outside).sum() for name in ("direct", "rank_dedup", "node_dedup")}
    assert between == {"direct": 12, "rank_dedup": 9, "node_dedup": 7}


def test_without_sums_at_forwarders_one_copy_per_gpu_goes_home():
    got = matrix("deepep_v2", "combine", multiple_reduction=False)
    nics = np.zeros((4, 4))
    for home in range(4):
        for gpu in range(4):
            if home // 2 != gpu // 2:
                nics[gpu // 2 * 2 + home % 2, home] += RANKS[home, gpu]
    np.testing.assert_array_equal(got, (nics + FORWARDED.T) * NORMAL[1])
    straight = matrix("deepep_v2", "dispatch", hybrid=False)
    np.testing.assert_array_equal(straight, RANKS * OFF * NORMAL[0])


def test_low_latency_issues_a_count_for_every_expert_beyond_reach_of_nvlink():
    """8 experts, half of them on the other node: 4 counts; by RDMA alone 6. A load takes twice as long as on an H100."""
    kernel = load_kernel("deepep_low_latency")
    for name, told in (("deepep_low_latency", 4), ("deepep_low_latency_rdma", 6)):
        for phase in ("dispatch", "combine"):
            t = pick(exchange, name)(phase, routing(TOKENS), contiguous(8, 8, 4), PAIR, FP8)
            nic = (t.src // 2 != t.dst // 2) | (told == 6)
            np.testing.assert_allclose(t.release[nic], 2 * kernel["round"] + told * kernel["message"])
            np.testing.assert_allclose(t.least, 2 * kernel["round"])
            assert t.messages.sum() == 16
            assert t.logical_bytes == 24 * (7392 if phase == "dispatch" else 14336)


def test_low_latency_takes_what_came_by_nvlink_out_of_its_buffer():
    """2 copies that a GPU keeps and 1 from its neighbour are read and written; a combine's begin before the round is over."""
    kernel = load_kernel("deepep_low_latency")
    for phase, token, begins in (("dispatch", 7392, "round"), ("combine", 14336, "launch")):
        t = exchange.deepep_low_latency(phase, routing(TOKENS), contiguous(8, 8, 4), PAIR, FP8)
        inside = t.src // 2 == t.dst // 2
        np.testing.assert_allclose(t.release[inside], 2 * kernel[begins] + 2 * 3 * token / (0.9 * 3e12))


def test_the_copies_of_deepep_and_the_formats_of_tokens():
    wire = {phase: matrix("deepep_normal", phase, model=SimpleNamespace(**{**vars(FP8), "top_k": 8})).max() / 2
            for phase in ("dispatch", "combine")}
    assert wire == {"dispatch": 7472, "combine": 14384}
    sizes = {"bf16": 14336, "fp8_block128": 7392, "mxfp8": 7392, "nvfp4": 4032, "mxfp4": 3808, "logfmt10": 9184, "fp32": 28672}
    assert {name: payload_bytes(name, 7168) for name in sizes} == sizes
    assert sizes.keys() <= PAYLOADS.keys()
    with pytest.raises(InputError, match="no data sheet of this format; did you mean nvfp4"):
        payload_bytes("nvfp5", 7168)
    half = matrix("deepep_normal", "dispatch", dispatch_payload="nvfp4")
    assert half.max() == 2 * 16 * np.ceil((4032 + 8 + 24) / 16)


@pytest.mark.parametrize(("n", "order"), [
    (4, [0, 1, 3, 2]), (6, [0, 1, 3, 2, 5, 4]), (8, [0, 1, 3, 6, 2, 7, 5, 4]),
    (16, [0, 1, 3, 6, 10, 15, 5, 12, 4, 13, 7, 2, 14, 11, 9, 8]),
])  # fmt: skip
def test_nccl_goes_by_triangular_numbers(n, order):
    assert delta_order(n).tolist() == order


def test_combine_of_deepep_normal_by_brute_force_on_500_random_routings():
    """Every GPU sends its own sum of a token's results to the forwarder (GPU i of its node, for a token of GPU i), unless it is
    the forwarder; the forwarder sends one sum home, unless it is at home."""
    rng = np.random.default_rng(5)
    for _ in range(500):
        nodes, each, k = rng.integers(1, 5), rng.integers(1, 5), rng.integers(1, 5)
        n = int(nodes * each)
        cluster = SimpleNamespace(
            n_gpus=n, n_nodes=int(nodes), gpus_per_node=int(each), node_of=np.arange(n) // each, local_of=np.arange(n) % each,
            gpu=GPU,
        )
        experts = n * int(rng.integers(1, 4)) + (n * k if n == 1 else 0)
        k = min(int(k), experts)
        tokens = int(rng.integers(1, 12))
        ids = np.array([rng.permutation(experts)[:k] for _ in range(n * tokens)])
        ids[rng.random(ids.shape) < 0.2] = -1
        p = contiguous(experts, experts, n)
        model = SimpleNamespace(top_k=k, hidden=8, dispatch_token_bytes=100.0, combine_token_bytes=200.0)
        t = exchange.deepep_normal("combine", routing(ids, tokens, n), p, cluster, model, sms=4)
        got, want = np.zeros((n, n)), np.zeros((n, n))
        np.add.at(got, (t.src, t.dst), t.nbytes)
        for token, row in enumerate(ids):
            home = token // tokens
            gpus = {int(p.gpu_of[e]) for e in row if e >= 0}
            for node in {gpu // each for gpu in gpus}:
                forwarder = node * each + home % each
                for gpu in gpus:
                    if gpu // each == node and gpu != forwarder:
                        want[gpu, forwarder] += 1
                if forwarder != home:
                    want[forwarder, home] += 1
        np.testing.assert_array_equal(got, want * 16 * np.ceil((200 + 8 + 4 * k) / 16))


def test_what_cannot_be_is_refused_in_one_line():
    p = contiguous(8, 8, 4)
    with pytest.raises(InputError, match=r"exchange\.sms=5: a channel has two SMs"):
        exchange.deepep_normal("dispatch", routing(TOKENS), p, PAIR, FP8, sms=5)
    with pytest.raises(InputError, match="2 nodes; it works inside one NVLink domain"):
        exchange.trtllm_one_sided("dispatch", routing(TOKENS), p, PAIR, FP8)
    with pytest.raises(InputError, match=r"exchange\.tensor=3: nodes of 2 GPUs"):
        exchange.tensor_expert("dispatch", routing(TOKENS), p, PAIR, FP8, tensor=3)
    with pytest.raises(InputError, match=r"kernel=deep_v1: there is no such file; did you mean deepep_v1"):
        exchange.deepep_normal("dispatch", routing(TOKENS), p, PAIR, FP8, kernel="deep_v1")


@pytest.mark.parametrize("name", ["rank_dedup", "node_dedup", "deepep_normal", "deepep_v2", "hybrid_ep"])
def test_what_was_counted_before_is_not_changed_by_who_asked_for_it(name):
    """A combine takes what its dispatch has counted; the third time it is still that."""
    r, p = routing(TOKENS), contiguous(8, 8, 4)
    function = pick(exchange, name)
    first, *again = (function("dispatch", r, p, PAIR, FP8) for _ in range(3))
    for one in again:
        assert one.logical_bytes == first.logical_bytes
        assert (one.src.tolist(), one.dst.tolist(), one.nbytes.tolist()) == (
            first.src.tolist(), first.dst.tolist(), first.nbytes.tolist()
        )  # fmt: skip


def test_another_replica_rule_is_another_count():
    """An expert on each node: by hash tokens of index 0 go to the first, so GPUs 2 and 3 send to node 0; `nearest` stays."""
    ids = np.zeros((4, 1), int)
    r = routing(ids, per_gpu=1)
    p = Placement(gpu_of=np.array([0, 2]), expert_of=np.zeros(2, int), replica="token_hash")
    function = pick(exchange, "node_dedup", metadata_bytes=0)
    by_hash = function("dispatch", r, p, PAIR, FP8)
    near = function("dispatch", r, replace(p, replica="nearest"), PAIR, FP8)
    far = [int((PAIR.node_of[t.src] != PAIR.node_of[t.dst]).sum()) for t in (by_hash, near)]
    assert far == [2, 0]


def test_payload_counts_a_copy_for_every_node_or_gpu_those_that_stay_too():
    """The worked example: 14 of a token and node, 18 of a token and GPU, 24 choices."""
    nodes = sum(len({expert // 4 for expert in token}) for token in TOKENS)
    gpus = sum(len({expert // 2 for expert in token}) for token in TOKENS)
    copies = {"node_dedup": nodes, "hybrid_ep": nodes, "deepep_v2": nodes, "deepep_normal": nodes, "rank_dedup": gpus,
              "direct": 24, "nccl_alltoall": 24, "deepep_low_latency": 24}  # fmt: skip
    for name, count in copies.items():
        t = pick(exchange, name)("dispatch", routing(TOKENS), contiguous(8, 8, 4), PAIR, FP8)
        assert t.logical_bytes == count * 7392, name


def test_low_latency_tells_every_far_expert_there_and_every_far_gpu_back():
    """GPU 0 holds five experts, the others one each. GPU 2 tells the 5 + 1 of node 0; back GPU 0 tells 2 GPUs for each of 5."""
    kernel = load_kernel("deepep_low_latency")
    p = Placement(gpu_of=np.array([0, 0, 0, 0, 0, 1, 2, 3]), expert_of=np.arange(8))
    begins = {}
    for phase in ("dispatch", "combine"):
        t = exchange.deepep_low_latency(phase, routing(TOKENS), p, PAIR, FP8)
        nic = PAIR.node_of[t.src] != PAIR.node_of[t.dst]
        begins[phase] = {int(src): float(at) for src, at in zip(t.src[nic], t.release[nic], strict=True)}
    for phase, told in (("dispatch", {2: 6, 0: 2}), ("combine", {2: 2, 0: 10})):
        one, other = (begins[phase][gpu] / kernel["message"] - count for gpu, count in told.items())
        assert one == pytest.approx(other), phase


def test_the_last_chunk_is_copied_out_by_sms_that_send_as_well():
    """So at half of their rate: at 1 GB/s a chunk of 512 KiB begins its last way 2 x 512 KiB / 1 GB/s late."""
    kernel = load_kernel("nccl")
    plain = independent(np.array([0]), np.array([1]), np.array([1e9]))
    late = {}
    for rate in (1e9, 1e30):
        with trying({"nccl.sm_rate": rate}):
            late[rate] = float(in_channels(plain, RACK, load_kernel("nccl")).release[0])
    assert late[1e9] - late[1e30] == pytest.approx(2 * kernel["chunk_nvlink"] / 1e9)
