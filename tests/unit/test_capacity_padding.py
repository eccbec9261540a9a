"""Rows of padding: to the capacity or to a multiple, before dispatch or on arrival."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import exchange, load_cluster
from clustersim.results.counting import count_layer
from clustersim.types import Choices, Routing
from clustersim.workload.capacity import limit
from clustersim.workload.capacity_padding import pad_routing_map, padding_rows
from tests import placed
from tests.contests import rule
from tests.traffic import traffic_matrix

EXPERT_OF = np.arange(4)
MODEL = SimpleNamespace(top_k=2, dispatch_token_bytes=7.0, combine_token_bytes=21.0)
relaxed = settings(deadline=None, max_examples=50)


def routed(rng, tokens_per_gpu, n_experts, top_k, overrides, n_gpus=4):
    """Uneven choices of equal batches under a rule: the rule, what it did, and rows [gpus, experts] that are kept."""
    tokens = n_gpus * tokens_per_gpu
    ids = (rng.gumbel(size=(tokens, n_experts)) + 2 * rng.normal(size=n_experts)).argsort(axis=1)[:, :top_k]
    source, index = np.repeat(np.arange(n_gpus), tokens_per_gpu), np.tile(np.arange(tokens_per_gpu), n_gpus)
    what = rule(**overrides)
    limited = limit(rng, what, Choices(ids=ids, weights=rng.random(ids.shape)), source=source, index=index, n_gpus=n_gpus,
                    n_experts=n_experts, top_k=top_k)  # fmt: skip
    rows = np.zeros((n_gpus, n_experts), int)
    t, j = np.nonzero(limited.assigned >= 0)
    np.add.at(rows, (source[t], limited.assigned[t, j]), 1)
    return what, limited, rows


def padding(overrides, seed=0, n_experts=8, tokens=24):
    what, limited, rows = routed(np.random.default_rng(seed), tokens, n_experts, 2, overrides)
    sent, computed = padding_rows(what, limited, rows, np.full(4, tokens), np.arange(n_experts))
    return rows, sent, computed


def test_without_a_rule_nothing_is_padded():
    _, sent, computed = padding({"factor": 1.25})
    assert sent is None
    assert not computed.any()


def test_buffers_are_filled_up_to_the_capacity_that_each_source_gpu_has():
    rows, sent, computed = padding({"factor": 1.25, "pad": True})
    assert (rows + sent == 8).all()                         # ceil(24 · 2 / 8 · 1.25)
    assert (computed == sent.sum(axis=0)).all()


def test_without_a_limit_buffers_are_as_large_as_the_fullest_one():
    rows, sent, _ = padding({"pad": True})
    assert rows.sum() == 4 * 24 * 2
    assert (rows + sent == rows.max()).all()


def test_the_groups_of_a_gpu_have_a_buffer_each():
    rows, sent, _ = padding({"factor": 1.0, "pad": True, "scope": "group", "group_tokens": 10})
    assert (rows + sent == 3 * 2).all()                     # 24 tokens: 3 groups of 8, each ceil(8 · 2 / 8)


def test_padding_on_arrival_is_computed_and_does_not_travel():
    rows, sent, computed = padding({"factor": 1.0, "pad": True, "scope": "global", "where": "expert"})
    assert sent is None
    assert (rows.sum(axis=0) + computed == 24).all()        # ceil(4 · 24 · 2 / 8)
    rows, sent, computed = padding({"pad_multiple": 16, "where": "expert"})
    assert sent is None
    assert ((rows.sum(axis=0) + computed) % 16 == 0).all()
    assert (computed < 16).all()


def test_padding_for_experts_of_the_own_gpu_is_computed_and_not_sent():
    """Rows [source GPU, slot], a slot on each: 2 and 3 go to the other GPU, of 10 bytes there and back."""
    ids = np.array([[0], [1]])
    counts = count_layer(
        Choices(ids=ids, weights=None),
        Routing(asked=ids, assigned=ids, weights=None, source=np.arange(2), index=np.zeros(2, int), capacity=None),
        placed.contiguous(2, 2, 2), np.ones(2, int), np.array([[1, 2], [3, 4]]), np.array([4, 6]),
        n_experts=2, n_gpus=2, row_bytes=10.0, renormalised=False,
    )
    assert counts.padding_sent_bytes == 50.0
    assert counts.padding_rows.tolist() == [4, 6]


def test_without_a_limit_what_arrives_is_filled_up_to_what_the_fullest_slot_has():
    rows = np.array([[9, 2, 0], [1, 3, 4]])                 # [source GPUs, slots]; 10, 5 and 4 arrive
    sent, computed = padding_rows(rule(pad=True, where="expert"), SimpleNamespace(room=None), rows, np.full(2, 12), np.arange(3))
    assert sent is None
    assert computed.tolist() == [0, 5, 6]
    _, computed = padding_rows(
        rule(pad=True, where="expert", pad_multiple=8), SimpleNamespace(room=None), rows, np.full(2, 12), np.arange(3)
    )
    assert computed.tolist() == [6, 11, 12], "16 rows each"


def test_every_replica_has_a_buffer_of_its_own():
    what, limited, rows = routed(np.random.default_rng(0), 24, 4, 2, {"factor": 1.0, "pad": True})
    halves = np.concatenate([rows // 2, rows - rows // 2], axis=1)
    sent, _ = padding_rows(what, limited, halves, np.full(4, 24), np.tile(np.arange(4), 2))
    assert (halves + sent == 12).all()


def test_what_was_protected_beyond_the_capacity_is_not_cut_by_padding():
    rows = np.array([[9, 2]])
    limited = SimpleNamespace(room=np.array([[4, 4]]), gpu_of_pool=np.array([0]))
    sent, _ = padding_rows(rule(factor=1, pad=True), limited, rows, np.array([12]), np.arange(2))
    assert sent.tolist() == [[0, 2]]


def test_no_expert_gets_a_token_twice_as_padding():
    """24 tokens: the buffers of an expert that 20 chose cannot reach 32."""
    rows = np.array([[20, 0, 16, 3]])
    sent, _ = padding_rows(rule(pad_multiple=16), None, rows, np.array([24]), EXPERT_OF)
    assert sent.tolist() == [[4, 0, 0, 13]]


@relaxed
@given(seed=st.integers(0, 2**32 - 1), multiple=st.integers(1, 40), tokens=st.integers(1, 60), share=st.floats(0, 1))
def test_padding_rows_counts_what_padding_the_routing_map_adds(seed, multiple, tokens, share):
    chosen = np.random.default_rng(seed).random((tokens, 4)) < share
    padded = pad_routing_map(chosen, multiple)
    assert (padded >= chosen).all()
    rows = chosen.sum(axis=0)[None]
    sent, computed = padding_rows(rule(pad_multiple=multiple), None, rows, np.array([tokens]), EXPERT_OF)
    if multiple == 1:
        assert sent is None
        assert (padded == chosen).all()
    else:
        assert (sent[0] == padded.sum(axis=0) - chosen.sum(axis=0)).all()
        assert (computed == sent[0]).all()
        full = chosen.sum(axis=0) + (-chosen.sum(axis=0) % multiple) <= tokens
        assert (padded.sum(axis=0)[full] % multiple == 0).all()


# ---- as bytes


def cluster(n_gpus):
    gpus = np.arange(n_gpus)
    return SimpleNamespace(n_gpus=n_gpus, n_nodes=1, gpus_per_node=n_gpus, node_of=np.zeros_like(gpus), local_of=gpus)


def bytes_between(rng, phase, overrides, n_experts=8, tokens=24):
    what, limited, rows = routed(rng, tokens, n_experts, 2, overrides)
    sent, _ = padding_rows(what, limited, rows, np.full(4, tokens), np.arange(n_experts))
    source, index = np.repeat(np.arange(4), tokens), np.tile(np.arange(tokens), 4)
    routing = Routing(
        asked=limited.assigned, assigned=limited.assigned, weights=None, source=source, index=index, capacity=None, padding=sent
    )
    transfers = exchange.direct(phase, routing, placed.contiguous(n_experts, n_experts, 4), cluster(4), MODEL)
    return traffic_matrix(transfers, 4), rows


@relaxed
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("phase", ["dispatch", "combine"])
def test_a_padded_all_to_all_sends_the_same_whatever_the_routing(phase, seed):
    """Per pair of GPUs: experts of the receiver · capacity · bytes of a token, both ways."""
    sent, _ = bytes_between(np.random.default_rng(seed), phase, {"factor": 1.25, "pad": True})
    token = MODEL.dispatch_token_bytes if phase == "dispatch" else MODEL.combine_token_bytes
    assert (sent == 2 * 8 * token * ~np.eye(4, dtype=bool)).all()


@relaxed
@given(seed=st.integers(0, 2**32 - 1), multiple=st.integers(2, 9))
def test_padding_to_a_multiple_adds_its_rows_to_what_is_sent(seed, multiple):
    padded, rows = bytes_between(np.random.default_rng(seed), "dispatch", {"pad_multiple": multiple})
    filled = np.minimum(-(-rows // multiple) * multiple, 24).reshape(4, 4, 2).sum(axis=2)
    assert (padded == filled * MODEL.dispatch_token_bytes * ~np.eye(4, dtype=bool)).all()


def test_exchanges_that_send_padding_do():
    """What `PADDING` lists really adds the rows, to a routing that sends nothing else."""
    machine = load_cluster("h100_sxm", nodes=1, gpus_per_node=4)
    nothing = np.full((4, 1), -1)
    empty = Routing(
        asked=nothing, assigned=nothing, weights=None, source=np.arange(4), index=np.zeros(4, int), capacity=None
    )
    for name in exchange.PADDING:
        send = getattr(exchange, name)
        where = placed.contiguous(4, 4, 4)
        assert send("dispatch", empty, where, machine, MODEL).n == 0
        padded = send("dispatch", replace(empty, padding=np.full((4, 4), 3)), where, machine, MODEL)
        flags = 2 if name == "nccl_alltoall" else 1         # of a small message every other word is a flag
        assert padded.nbytes.sum() == flags * 12 * 3 * MODEL.dispatch_token_bytes
