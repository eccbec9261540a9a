"""Which copies travel in each hop, what they weigh, and what they wait for; on clusters small enough to follow a token."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.exchange import direct, node_dedup
from clustersim.exchange.copies import distinct
from clustersim.types import InputError, Placement, Routing
from tests.traffic import traffic_matrix

TOKEN = 100.0
MODEL = SimpleNamespace(top_k=2, dispatch_token_bytes=TOKEN, combine_token_bytes=2 * TOKEN)


def cluster(n_nodes, gpus_per_node):
    gpus = np.arange(n_nodes * gpus_per_node)
    return SimpleNamespace(
        n_gpus=gpus.size, n_nodes=n_nodes, gpus_per_node=gpus_per_node,
        node_of=gpus // gpus_per_node, local_of=gpus % gpus_per_node,
    )


def routed(choices, source, n_gpus):
    """Tokens whose choices are GPUs: expert g is the only one on GPU g."""
    choices = np.array(choices)
    routing = Routing(
        asked=choices, assigned=choices, weights=None, source=np.array(source), index=np.arange(len(choices)), capacity=None
    )
    return routing, Placement(gpu_of=np.arange(n_gpus), expert_of=np.arange(n_gpus))


def rows(transfers):
    """(src, dst, nbytes, what it follows) of every transfer."""
    parents = [transfers.after[a:b].tolist() for a, b in zip(transfers.after_start[:-1], transfers.after_start[1:], strict=True)]
    return list(zip(transfers.src.tolist(), transfers.dst.tolist(), transfers.nbytes.tolist(), parents, strict=True))


def test_distinct_keeps_the_first_visit_of_every_place():
    places = np.array([[3, 1, -1], [3, 2, 5], [4, 1, 5], [3, 2, -1]])
    assert distinct(places).tolist() == [[3, 1, -1], [-1, 2, 5], [4, -1, -1], [-1, -1, -1]]


def test_direct_sends_one_copy_per_choice_and_none_to_the_own_gpu():
    two_experts_on_gpu_1 = Placement(gpu_of=np.array([0, 1, 1]), expert_of=np.array([0, 1, 2]))
    routing, _ = routed([[1, 2], [0, 1]], [0, 0], 3)
    assert rows(direct("dispatch", routing, two_experts_on_gpu_1, cluster(1, 2), MODEL)) == [(0, 1, 3 * TOKEN, [])]
    assert rows(direct("combine", routing, two_experts_on_gpu_1, cluster(1, 2), MODEL)) == [(1, 0, 6 * TOKEN, [])]


def test_dropped_choices_do_not_travel():
    routing, placed = routed([[1, -1], [-1, -1]], [0, 0], 2)
    for exchange in (direct, node_dedup):
        assert exchange("dispatch", routing, placed, cluster(1, 2), MODEL).n == 1


def test_nothing_to_send_is_no_transfer():
    routing, placed = routed([[0, -1]], [0], 4)
    for exchange in (direct, node_dedup):
        for phase in ("dispatch", "combine"):
            t = exchange(phase, routing, placed, cluster(2, 2), MODEL)
            assert t.n == 0
            assert t.after_start.tolist() == [0]


def test_a_token_crosses_once_per_node_and_is_passed_on_to_every_gpu_but_the_forwarder():
    # Nodes {0,1,2} and {3,4,5}. The token of GPU 1 wants GPUs 4 and 5; its forwarder is GPU 4, at the same place in its node.
    routing, placed = routed([[4, 5]], [1], 6)
    there = node_dedup("dispatch", routing, placed, cluster(2, 3), MODEL, metadata_bytes=0)
    assert rows(there) == [(1, 4, TOKEN, []), (4, 5, TOKEN, [0])]
    back = node_dedup("combine", routing, placed, cluster(2, 3), MODEL, metadata_bytes=0)
    assert rows(back) == [(5, 4, 2 * TOKEN, []), (4, 1, 2 * TOKEN, [0])]


def test_a_token_for_the_forwarder_alone_takes_no_second_hop():
    routing, placed = routed([[4, -1]], [1], 6)
    for phase, expected in (("dispatch", [(1, 4, TOKEN, [])]), ("combine", [(4, 1, 2 * TOKEN, [])])):
        assert rows(node_dedup(phase, routing, placed, cluster(2, 3), MODEL, metadata_bytes=0)) == expected


def test_a_token_for_the_own_node_goes_straight_to_each_gpu_once():
    routing, placed = routed([[0, 2]], [1], 6)
    t = node_dedup("dispatch", routing, placed, cluster(2, 3), MODEL, metadata_bytes=0)
    assert rows(t) == [(1, 0, TOKEN, []), (1, 2, TOKEN, [])]


def test_the_way_home_waits_for_every_gpu_that_feeds_the_forwarder_for_that_source():
    # Tokens of GPU 0 are on GPUs 4 and 5, one of GPU 1 is on GPU 3. Forwarders on the far node: 3 for GPU 0, 4 for GPU 1.
    routing, placed = routed([[4, 5], [3, -1]], [0, 1], 6)
    t = node_dedup("combine", routing, placed, cluster(2, 3), MODEL, metadata_bytes=0)
    assert rows(t) == [
        (4, 3, 2 * TOKEN, []), (5, 3, 2 * TOKEN, []), (3, 4, 2 * TOKEN, []),
        (3, 0, 2 * TOKEN, [0, 1]), (4, 1, 2 * TOKEN, [2]),
    ]


def test_on_one_node_it_is_one_copy_per_token_and_gpu():
    two_experts_each = Placement(gpu_of=np.array([0, 0, 1, 1]), expert_of=np.arange(4))
    routing, _ = routed([[2, 3], [0, 2]], [0, 1], 4)
    t = node_dedup("dispatch", routing, two_experts_each, cluster(1, 2), MODEL, metadata_bytes=0)
    assert rows(t) == [(0, 1, TOKEN, []), (1, 0, TOKEN, [])]


def test_gpus_of_a_node_need_not_be_neighbours():
    interleaved = SimpleNamespace(
        n_gpus=4, n_nodes=2, gpus_per_node=2, node_of=np.array([0, 1, 0, 1]), local_of=np.array([0, 0, 1, 1])
    )
    routing, placed = routed([[2, 3]], [0], 4)
    t = node_dedup("dispatch", routing, placed, interleaved, MODEL, metadata_bytes=0)
    assert rows(t) == [(0, 1, TOKEN, []), (0, 2, TOKEN, []), (1, 3, TOKEN, [0])]


def test_a_chunk_is_so_many_tokens_in_the_bytes_of_the_wire():
    routing, placed = routed([[2, 3]] * 40, [0] * 40, 4)
    t = node_dedup("dispatch", routing, placed, cluster(2, 2), MODEL, chunk_tokens=16, metadata_bytes=20)
    assert t.nbytes.tolist() == [40 * 120.0, 40 * 120.0]
    assert t.chunk.tolist() == [16 * 120.0, 16 * 120.0]


def test_a_copy_carries_its_expert_ids_and_gate_weights_and_is_a_multiple_of_16_bytes():
    # dispatch 100 + 8 + 2·8 = 124, combine 200 + 8 + 2·4 = 216; rounded up 128 and 224
    routing, placed = routed([[2, -1]], [0], 4)
    assert node_dedup("dispatch", routing, placed, cluster(2, 2), MODEL).nbytes.tolist() == [128.0]
    assert node_dedup("combine", routing, placed, cluster(2, 2), MODEL).nbytes.tolist() == [224.0]


def test_traffic_adds_up_over_hops_and_may_be_asked_for_some_of_them():
    routing, placed = routed([[2, 3], [3, -1]], [0, 0], 4)
    t = node_dedup("dispatch", routing, placed, cluster(2, 2), MODEL, metadata_bytes=0)
    everything = np.zeros((4, 4))
    everything[0, 2] = everything[2, 3] = 2 * TOKEN
    assert (traffic_matrix(t, 4) == everything).all()
    assert traffic_matrix(t, 4, t.src == 0).sum() == 2 * TOKEN


@pytest.mark.parametrize(("key", "value"), [("chunk_tokens", 0), ("metadata_bytes", -1.0)])
def test_impossible_options_are_refused_by_name(key, value):
    routing, placed = routed([[2, 3]], [0], 4)
    with pytest.raises(InputError, match=rf"exchange\.{key}={value}: "):
        node_dedup("dispatch", routing, placed, cluster(2, 2), MODEL, **{key: value})
