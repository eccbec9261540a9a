"""Vectors from reference implementations: what those compute, or what follows by hand from their documented rule.

vLLM's rule was transcribed and run; the exchange counts follow from DeepEP dd758caf (2026-07-14) by hand.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import exchange
from clustersim.exchange.copies import count_copies, destinations, distinct
from clustersim.placement.replicas import token_hash
from clustersim.types import Placement, Routing
from tests import placed
from tests.traffic import traffic_matrix


@pytest.mark.parametrize(
    ("replicas", "expected"), [(2, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]), (3, [0, 0, 2, 2, 1, 0, 0, 2, 2, 1, 0, 0])]
)
def test_the_replica_of_a_token_is_vllms(replicas, expected):
    """vLLM, fused_moe/router/base_router.py: ((token index · 2654435769) mod 2^32) mod replicas, tokens 0 to 11."""
    one_expert = Placement(gpu_of=np.arange(replicas), expert_of=np.zeros(replicas, int))
    slots = token_hash(np.zeros((12, 1), int), np.arange(12), np.zeros(12, int), one_expert, np.zeros(replicas, int))
    assert slots.ravel().tolist() == expected


# 2 nodes of 2 GPUs, 8 experts, two to a GPU in order; each GPU has two tokens of three experts; one copy weighs 1
TOKENS = np.array([[0, 1, 4], [2, 4, 6], [2, 3, 5], [0, 6, 7], [4, 5, 6], [1, 2, 3], [6, 0, 1], [5, 7, 2]])
ROUTING = Routing(
    asked=TOKENS, assigned=TOKENS, weights=None, source=np.repeat(np.arange(4), 2), index=np.tile([0, 1], 4), capacity=None
)
PLACED = placed.contiguous(8, 8, 4)
UNIT = SimpleNamespace(top_k=3, dispatch_token_bytes=1.0, combine_token_bytes=1.0)


def cluster(n_nodes, gpus_per_node):
    gpus = np.arange(n_nodes * gpus_per_node)
    return SimpleNamespace(
        n_gpus=gpus.size, n_nodes=n_nodes, gpus_per_node=gpus_per_node,
        node_of=gpus // gpus_per_node, local_of=gpus % gpus_per_node,
    )


DIRECT = np.array([[2, 1, 2, 1], [1, 2, 1, 2], [1, 2, 2, 1], [2, 1, 1, 2]])         # copies that stay at home included
RANK_DEDUP = np.array([[1, 1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 2]])
NIC = np.array([[0, 0, 2, 0], [0, 0, 0, 2], [1, 0, 0, 0], [0, 2, 0, 0]])
NVLINK = np.array([[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 2], [0, 0, 2, 0]])
AWAY = ~np.eye(4, dtype=bool)


def test_copies_are_counted_per_choice_or_per_gpu():
    gpus = destinations(ROUTING, PLACED, cluster(2, 2))
    assert (count_copies(ROUTING.source, gpus, 4, 4) == DIRECT).all()
    assert (count_copies(ROUTING.source, distinct(gpus), 4, 4) == RANK_DEDUP).all()


@pytest.mark.parametrize(("phase", "turn"), [("dispatch", False), ("combine", True)])
def test_direct_sends_every_choice(phase, turn):
    """Megatron-LM's all-to-all: 8 copies stay at home, 4 cross within a node, 12 between nodes."""
    t = exchange.direct(phase, ROUTING, PLACED, cluster(2, 2), UNIT)
    expected = DIRECT * AWAY
    assert (traffic_matrix(t, 4) == (expected.T if turn else expected)).all()
    assert t.n == 12


@pytest.mark.parametrize(("phase", "turn"), [("dispatch", False), ("combine", True)])
def test_on_one_node_node_dedup_is_rank_dedup(phase, turn):
    """DeepEP inside a node: one copy per token and GPU."""
    t = exchange.node_dedup(phase, ROUTING, PLACED, cluster(1, 4), UNIT, metadata_bytes=0)
    expected = RANK_DEDUP * AWAY
    assert (traffic_matrix(t, 4) == (expected.T if turn else expected)).all()
    assert t.after.size == 0


@pytest.mark.parametrize(("phase", "turn"), [("dispatch", False), ("combine", True)])
def test_node_dedup_sends_7_copies_between_nodes_and_8_inside_them(phase, turn):
    """DeepEP's normal kernels, dispatch and its exact transpose."""
    c = cluster(2, 2)
    t = exchange.node_dedup(phase, ROUTING, PLACED, c, UNIT, metadata_bytes=0)
    nic = c.node_of[t.src] != c.node_of[t.dst]
    assert (traffic_matrix(t, 4, nic) == (NIC.T if turn else NIC)).all()
    assert (traffic_matrix(t, 4, ~nic) == (NVLINK.T if turn else NVLINK)).all()
    assert np.count_nonzero(nic) == 4


@pytest.mark.parametrize(
    ("phase", "token_bytes", "wire"),
    [("dispatch", 7168 * (1 + 4 / 128), 7472), ("dispatch", 7168 * 2, 14416), ("combine", 7168 * 2, 14384)],
    ids=["FP8 dispatch", "BF16 dispatch", "BF16 combine"],
)
def test_a_copy_weighs_what_deepeps_does(phase, token_bytes, wire):
    """Hidden 7168, top-8: the token, its scales, source meta, expert ids and gate weights, aligned to 16 bytes."""
    model = SimpleNamespace(top_k=8, dispatch_token_bytes=token_bytes, combine_token_bytes=token_bytes)
    one = Routing(
        asked=np.array([[4]]), assigned=np.array([[4]]), weights=None, source=np.array([0]), index=np.array([0]), capacity=None
    )
    assert exchange.node_dedup(phase, one, PLACED, cluster(2, 2), model).nbytes.tolist() == [wire]


def test_dedup_by_node_saves_two_fifths_of_the_bytes_between_nodes():
    """12 copies of 7,472 bytes sent directly, 7 with dedup by node: 41.7 % less."""
    c, model = cluster(2, 2), SimpleNamespace(top_k=3, dispatch_token_bytes=7472.0, combine_token_bytes=7472.0)
    far = c.node_of[:, None] != c.node_of
    every_choice = exchange.direct("dispatch", ROUTING, PLACED, c, model)
    once_per_node = exchange.node_dedup("dispatch", ROUTING, PLACED, c, model, metadata_bytes=0)
    assert traffic_matrix(every_choice, 4)[far].sum() == 89_664
    assert traffic_matrix(once_per_node, 4)[far].sum() == 52_304
