"""Vectors from reference implementations: who is dropped and how many places there are.

Megatron-LM d98e8a64, DeepSpeed edaa7221 (2026-08-22) and Tutel ac0e51b9 were run on the 8 tokens below with torch 2.13 on a
CPU; the rest follows from the documented rule of the framework that a test names. Ties fall to the earlier token.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import exchange
from clustersim.types import Routing
from clustersim.workload import capacity_sizes
from clustersim.workload.capacity import applied_weights
from clustersim.workload.capacity_padding import pad_routing_map, padding_rows
from clustersim.workload.capacity_policies import places
from tests import placed
from tests.contests import assigned, contest, rule
from tests.traffic import traffic_matrix

LOGITS = np.array([
    [2.0, 1.0, 0.0, -1.0], [1.5, 0.5, 0.2, -0.3], [3.0, 0.1, 1.0, 0.0], [0.2, 2.2, 0.1, 0.0],
    [1.0, 0.9, 0.8, 0.7], [2.5, -1.0, 0.5, 2.0], [0.0, 0.3, 1.7, 0.1], [1.2, 0.4, 0.6, 1.1],
])  # fmt: skip
TOP_2 = np.array([[0, 1], [0, 1], [0, 2], [1, 0], [0, 1], [0, 3], [2, 1], [0, 3]])      # loads 7, 5, 2, 2
GATES = np.array([                                                                     # softmax over the two logits
    [0.731059, 0.268941], [0.731059, 0.268941], [0.880797, 0.119203], [0.880797, 0.119203],
    [0.524979, 0.475021], [0.622459, 0.377541], [0.802184, 0.197816], [0.524979, 0.475021],
])
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
SURE = [2, 3, 0, 6, 5, 1, 7, 4]                                                        # by largest probability


def capacity(name, tokens, top_k, n_experts, factor, **options):
    size = getattr(capacity_sizes, name)
    return int(size(np.array([tokens]), top_k, n_experts, factor, options.pop("largest", 0), **options)[0])


def kept(policy, room=4, asked=TOP_2, **known):
    return assigned(policy, asked, room, n_experts=4, weights=known.get("weights", GATES), scores=LOGITS.astype(np.float32),
                    rng=np.random.default_rng(0))  # fmt: skip


def as_map(ids):
    """Whether a token has an expert, int [tokens, experts]."""
    return np.array([[int(e in row) for e in range(4)] for row in ids.tolist()])


def as_list(ids, weights, order=None):
    """(token, expert, place in its buffer, weight) of all that is kept; places are counted over what is kept."""
    slot = places(contest(ids, 4, n_experts=4), by_choice=order == "choice_major")
    rows = [(t, int(ids[t, j]), int(slot[t, j]), float(weights[t, j])) for t, j in zip(*np.nonzero(ids >= 0), strict=True)]
    return sorted(rows)


def same(rows, expected):
    assert [row[:3] for row in rows] == [tuple(row[:3]) for row in expected]
    np.testing.assert_allclose([row[3] for row in rows], [row[3] for row in expected], atol=1e-5)


# ---- who stays


def test_megatron_by_probability():
    """`moe_token_drop_policy=probs` at factor 1: 4 of 16 choices go, no token loses both; weights are not renormalised."""
    assert capacity("megatron", 8, 2, 4, 1.0) == 4
    ids = kept("prob")
    expected = [
        [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1],
    ]  # fmt: skip
    assert (as_map(ids) == expected).all()
    assert as_map(ids).sum(axis=0).tolist() == [4, 4, 2, 2]
    assert (ids < 0).mean() == 0.25
    assert not (ids < 0).all(axis=1).any()
    after = applied_weights(GATES, TOP_2, ids, renormalise=False)
    assert (after == np.where(ids >= 0, GATES, 0)).all()
    assert after[4].tolist() == [0.0, 0.475021]


def test_by_position():
    """DeepSpeed's running count over tokens. Megatron-LM's policy of this name breaks ties: of expert 0 it kept 0, 4, 5, 7."""
    expected = [
        [1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1],
    ]  # fmt: skip
    assert (as_map(kept("position")) == expected).all()


LOCATIONS = [[0, 1], [1, 2], [2, 1], [0, 6], [3, 3], [4, 0], [0, 4], [5, 1]]


def test_choice_major_of_deepspeed_and_of_mesh_tensorflow():
    """Mesh TensorFlow counts only what it kept: a dropped choice's number is the capacity. Who stays is the same."""
    every = contest(TOP_2, 4, n_experts=4)
    location = places(every, by_choice=True)
    assert location.tolist() == LOCATIONS
    assert (kept("choice_major") >= 0).astype(int).tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [1, 1], [0, 1], [1, 0], [0, 1]]
    assert np.minimum(location, 4).tolist() == [[0, 1], [1, 2], [2, 1], [0, 4], [3, 3], [4, 0], [0, 4], [4, 1]]


def test_batch_prioritised():
    assert np.argsort(-SOFTMAX.max(axis=1), kind="stable").tolist() == SURE
    assert (kept("bpr") >= 0).astype(int).tolist() == [[1, 1], [1, 1], [1, 1], [1, 0], [0, 0], [1, 1], [1, 1], [0, 1]]


def test_tutels_locations_and_gates():
    """`extract_critical`: dropped iff the location reaches the capacity; gates are normalised before, not after."""
    assert capacity("tutel", 8, 2, 4, 1.0) == 4
    every = contest(TOP_2, 4, n_experts=4)
    assert places(every, by_choice=True).T.tolist() == [[0, 1, 2, 0, 3, 4, 0, 5], [1, 2, 1, 6, 3, 0, 4, 1]]
    assert places(every, np.array(SURE), by_choice=True).T.tolist() == [[1, 3, 0, 0, 5, 2, 0, 4], [1, 3, 1, 6, 4, 0, 2, 1]]
    normalised = np.take_along_axis(SOFTMAX, TOP_2, axis=1)
    normalised /= normalised.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(normalised, GATES, atol=1e-5)
    ids = kept("choice_major")
    assert (applied_weights(GATES, TOP_2, ids, renormalise=rule("tutel").renormalise) == np.where(ids >= 0, GATES, 0)).all()


def test_deepspeed_top_1_without_random_selection():
    """Capacity 2 with loads 6, 1, 1, 0. Which 2 of expert 0's it keeps is a tie of torch's; ours are the earliest."""
    first = TOP_2[:, :1]
    assert np.bincount(first.ravel(), minlength=4).tolist() == [6, 1, 1, 0]
    assert capacity("deepspeed", 8, 1, 4, 1.0, min_capacity=1) == 2
    for policy in ("position", "random"):
        ids = kept(policy, room=2, asked=first)
        assert as_map(ids).sum(axis=0).tolist() == [2, 1, 1, 0]
    assert np.flatnonzero(kept("position", room=2, asked=first)[:, 0] == 0).tolist() == [0, 1]


def test_deepspeed_top_2():
    assert capacity("deepspeed", 8, 2, 4, 1.0, min_capacity=1) == 4
    ids = kept("deepspeed")
    weights = applied_weights(GATES, TOP_2, ids, renormalise=rule("deepspeed").renormalise)
    same(as_list(ids, weights, "choice_major"), [
        [0, 0, 0, 0.731059], [0, 1, 1, 0.268941], [1, 0, 1, 0.731059], [1, 1, 2, 0.268941], [2, 0, 2, 0.880797],
        [2, 2, 1, 0.119203], [3, 1, 0, 1.0], [4, 0, 3, 0.524979], [4, 1, 3, 0.475021], [5, 3, 0, 1.0], [6, 2, 0, 1.0],
        [7, 3, 1, 1.0],
    ])  # fmt: skip


def test_deepspeed_top_k_by_probability():
    """`topkgating`: ranked by the softmax over all experts, renormalised over what is kept; places count the kept tokens."""
    gates = np.take_along_axis(SOFTMAX, TOP_2, axis=1)
    ids = kept("prob", weights=gates)
    same(as_list(ids, applied_weights(gates, TOP_2, ids, renormalise=True)), [
        [0, 0, 0, 0.731059], [0, 1, 0, 0.268941], [1, 0, 1, 0.731059], [1, 1, 1, 0.268941], [2, 0, 2, 0.880797],
        [2, 2, 0, 0.119203], [3, 1, 2, 1.0], [4, 1, 3, 1.0], [5, 0, 3, 0.622459], [5, 3, 0, 0.377541], [6, 2, 1, 1.0],
        [7, 3, 1, 1.0],
    ])  # fmt: skip


def test_deepspeed_top_k_by_position():
    gates = np.take_along_axis(SOFTMAX, TOP_2, axis=1)
    ids = kept("position")
    same(as_list(ids, applied_weights(gates, TOP_2, ids, renormalise=True)), [
        [0, 0, 0, 0.731059], [0, 1, 0, 0.268941], [1, 0, 1, 0.731059], [1, 1, 1, 0.268941], [2, 0, 2, 0.880797],
        [2, 2, 0, 0.119203], [3, 0, 3, 0.119203], [3, 1, 2, 0.880797], [4, 1, 3, 1.0], [5, 3, 0, 1.0], [6, 2, 1, 1.0],
        [7, 3, 1, 1.0],
    ])  # fmt: skip


def test_capacity_4_of_24_places_for_loads_10_2_4_4_0_4():
    """18 kept, 6 dropped: drop rate 1/4, three quarters of the places used, a quarter padding."""
    load = np.array([10, 2, 4, 4, 0, 4])
    asked = np.repeat(np.arange(6), load)[:, None]
    assert capacity("megatron", 24, 1, 6, 1.0) == 4
    ids = assigned("position", asked, 4, n_experts=6)
    assert ((ids >= 0).sum(), (ids < 0).sum()) == (18, 6)
    rows = np.bincount(ids[ids >= 0], minlength=6)[None]
    limited = SimpleNamespace(room=np.full((1, 6), 4), gpu_of_pool=np.array([0]))
    sent, _ = padding_rows(rule(factor=1.0, pad=True), limited, rows, np.array([24]), np.arange(6))
    assert (rows.sum() / 24, sent.sum() / 24) == (0.75, 0.25)


# ---- how many places


@pytest.mark.parametrize(
    ("name", "given", "options", "places"),
    [
        ("megatron", (32768, 1, 256, 1.0), {}, 128), ("megatron", (100, 1, 8, 1.25), {}, 16),
        ("megatron", (10, 1, 4, 1.0), {}, 3), ("megatron", (7, 1, 8, 1.0), {}, 1),
        ("deepspeed", (100, 1, 8, 1.25), {}, 16), ("deepspeed", (10, 1, 4, 1.0), {}, 8),
        ("deepspeed", (10, 1, 4, 1.0), {"min_capacity": 0}, 3),
        ("mesh_tensorflow", (1024, 1, 64, 1.25), {}, 20), ("mesh_tensorflow", (100, 1, 8, 1.25), {}, 15),
        ("mesh_tensorflow", (10, 1, 4, 1.0), {}, 4),
        ("flaxformer", (100, 1, 8, 1.25), {}, 16), ("flaxformer", (1024, 1, 64, 1.25), {}, 20),
        ("vmoe", (200, 1, 8, 1.05), {}, 28), ("vmoe", (100, 1, 8, 1.0), {}, 16), ("vmoe", (100, 2, 8, 1.05), {}, 28),
        ("fastmoe_gshard", (100, 2, 8, 1.2), {}, 30), ("fastmoe_gshard", (100, 2, 8, 2.4), {}, 60),
        ("fastmoe_switch", (100, 1, 8, 1.2), {}, 15),
    ],
)  # fmt: skip
def test_capacity_is_the_frameworks(name, given, options, places):
    """The first number is tokens or, at top-1, choices; where a formula does not say top_k, none is in it."""
    assert capacity(name, *given, **options) == places


@pytest.mark.parametrize(
    ("factor", "alignment", "places"),
    [
        (1.0, 1, 4), (1.0, 8, 8), (0.0, 1, 7), (0.0, 8, 8), (-1.0, 1, 4), (-1.0, 8, 8), (-2.0, 1, 7), (-2.0, 8, 8),
        (1.25, 1, 4), (1.25, 8, 8),
    ],
)  # fmt: skip
def test_capacity_is_tutels(factor, alignment, places):
    """8 tokens, 4 experts, top-2, largest load 7: factor 1.25 gives no more than 1.0, because 2 · floor(1.25 · 2) is 4."""
    assert capacity("tutel", 8, 2, 4, factor, largest=7, alignment=alignment) == places


def test_capacity_is_that_of_moe_plus_plus():
    """gamma 1.1, tau 0.75, top-2, 1,024 tokens, 8 FFN experts, 4 zero-computation ones."""
    shares = capacity_sizes.moe_plus_plus_shares(2, 8, 4, 1.1, 0.75)
    np.testing.assert_allclose(1024 * shares, [168.96, 225.28], atol=1e-5)


# ---- padding


def test_padding_the_routing_map_to_a_multiple_of_4():
    """Megatron-LM `pad_routing_map`: loads 7, 5, 2, 2 become 8, 8, 4, 4."""
    padded = pad_routing_map(as_map(TOP_2).astype(bool), 4)
    assert padded.sum(axis=0).tolist() == [8, 8, 4, 4]
    assert padded.astype(int).tolist() == [
        [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 1],
    ]  # fmt: skip
    rows = np.array([[7, 5, 2, 2]])
    sent, _ = padding_rows(rule(pad_multiple=4), None, rows, np.array([8]), np.arange(4))
    assert (rows + sent).tolist() == [[8, 8, 4, 4]]


def test_bytes_of_a_padded_all_to_all():
    """64 experts on 16 GPUs, 2,048 tokens, top-2, hidden 4096 in BF16: 2 MiB to every GPU, whatever the routing."""
    assert capacity("megatron", 2048, 2, 64, 1.0) == 64
    tokens = 8                                             # any choices do: the rest of the 64 rows is padding
    ids = np.random.default_rng(0).random((16 * tokens, 64)).argsort(axis=1)[:, :2]
    source = np.repeat(np.arange(16), tokens)
    rows = np.zeros((16, 64), int)
    np.add.at(rows, (source[:, None], ids), 1)
    limited = SimpleNamespace(room=np.full((16, 64), 64), gpu_of_pool=np.arange(16))
    sent, _ = padding_rows(rule(factor=1.0, pad=True), limited, rows, np.full(16, 2048), np.arange(64))
    gpus = SimpleNamespace(n_gpus=16, n_nodes=2, gpus_per_node=8, node_of=np.arange(16) // 8, local_of=np.arange(16) % 8)
    routing = Routing(
        asked=ids, assigned=ids, weights=None, source=source, index=np.tile(np.arange(tokens), 16), capacity=None, padding=sent
    )
    model = SimpleNamespace(top_k=2, dispatch_token_bytes=8192.0, combine_token_bytes=8192.0)
    for phase in ("dispatch", "combine"):
        matrix = traffic_matrix(exchange.direct(phase, routing, placed.contiguous(64, 64, 16), gpus, model), 16)
        assert (matrix == 2_097_152 * ~np.eye(16, dtype=bool)).all()
        assert (matrix.sum(axis=1) == 31_457_280).all()
    assert (rows + sent).sum(axis=1).tolist() == [33_554_432 // 8192] * 16
