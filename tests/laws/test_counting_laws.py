"""What must hold of every routing, placement and exchange before any clock runs: exact, in integers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import exchange
from clustersim.exchange.copies import channel_copies, count_copies, destinations, distinct
from clustersim.placement import replicas
from clustersim.types import Placement, Routing
from tests.placed import place
from tests.traffic import traffic_matrix

N_EXPERTS = 8
MODEL = SimpleNamespace(top_k=3, dispatch_token_bytes=7.0, combine_token_bytes=21.0)
relaxed = settings(deadline=None)       # examples are small; a busy machine may stall one
EXCHANGES = [exchange.direct, exchange.node_dedup]
seeds = st.integers(0, 2**32 - 1)
shapes = st.sampled_from([(1, 1), (1, 4), (2, 2), (2, 3), (4, 1), (4, 2)])      # nodes, GPUs per node


def cluster(n_nodes, gpus_per_node):
    gpus = np.arange(n_nodes * gpus_per_node)
    return SimpleNamespace(
        n_gpus=gpus.size, n_nodes=n_nodes, gpus_per_node=gpus_per_node,
        node_of=gpus // gpus_per_node, local_of=gpus % gpus_per_node,
    )


def routing(rng, n_gpus, tokens=40, top_k=3, missing=0.2):
    """Tokens with distinct experts, uneven popularity, weights with ties, some choices missing; ordered by source."""
    score = rng.gumbel(size=(tokens, N_EXPERTS)) + 2 * rng.normal(size=N_EXPERTS)
    asked = score.argsort(axis=1)[:, :top_k]
    asked[rng.random(asked.shape) < missing] = -1
    source = np.sort(rng.integers(0, n_gpus, tokens))
    index = np.arange(tokens) - np.searchsorted(source, source)
    weights = rng.integers(0, 6, asked.shape) / 8
    return Routing(asked=asked, assigned=asked, weights=weights, source=source, index=index, capacity=None)


def placed(rng, n_gpus, spare, replica):
    """Any placement that gives every expert a slot, `spare` of them a second or third one; GPUs may differ in slots."""
    expert_of = rng.permutation(np.concatenate([np.arange(N_EXPERTS), rng.integers(0, N_EXPERTS, spare)]))
    return Placement(gpu_of=rng.integers(0, n_gpus, expert_of.size), expert_of=expert_of, replica=replica)


@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8), rule=st.sampled_from(replicas.__all__))
def test_a_token_visits_at_most_as_many_nodes_as_gpus_and_gpus_as_it_has_choices(seed, shape, spare, rule):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus, missing=0.0), placed(rng, c.n_gpus, spare, rule)
    gpus = destinations(r, p, c)
    per_gpu = (distinct(gpus) >= 0).sum(axis=0)
    per_node = (distinct(np.append(c.node_of, -1)[gpus]) >= 0).sum(axis=0)
    assert (per_gpu >= 1).all()
    assert (per_gpu <= min(r.asked.shape[1], c.n_gpus)).all()
    assert (per_node >= 1).all()
    assert (per_node <= per_gpu).all()


@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8), channels=st.integers(1, 5))
def test_the_channels_of_a_gpu_share_its_copies_by_runs_of_tokens(seed, shape, spare, channels):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, "token_hash")
    gpus = destinations(r, p, c)
    channel = r.index * channels // np.bincount(r.source, minlength=c.n_gpus)[r.source]
    expected = count_copies(r.source * channels + channel, distinct(gpus), c.n_gpus * channels, c.n_gpus)
    nodes = count_copies(r.source, distinct(np.append(c.node_of, -1)[gpus]), c.n_gpus, c.n_nodes)
    for _ in ("dispatch", "combine"):
        by_channel, to_node = channel_copies(r, p, c, channels)
        assert (by_channel == expected.reshape(c.n_gpus, channels, c.n_gpus)).all()
        assert (to_node == nodes).all()
    assert (channel_copies(r, p, c, 1)[0][:, 0] == by_channel.sum(axis=1)).all(), "what was counted last had other channels"


@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8), rule=st.sampled_from(replicas.__all__))
def test_node_dedup_crosses_nodes_no_more_than_rank_dedup_and_that_no_more_than_direct(seed, shape, spare, rule):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, rule)
    gpus = destinations(r, p, c)
    far = c.node_of[:, None] != c.node_of
    by_choice, by_gpu = (count_copies(r.source, places, c.n_gpus, c.n_gpus)[far].sum() for places in (gpus, distinct(gpus)))
    t = exchange.node_dedup("dispatch", r, p, c, MODEL, metadata_bytes=0)
    by_node = traffic_matrix(t, c.n_gpus)[far].sum() / MODEL.dispatch_token_bytes
    assert by_node <= by_gpu <= by_choice


@pytest.mark.parametrize("options", [{}, {"metadata_bytes": 0}], ids=["direct", "node_dedup"])
@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8), rule=st.sampled_from(replicas.__all__))
def test_combine_is_dispatch_transposed_in_the_bytes_of_the_way_back(options, seed, shape, spare, rule):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, rule)
    function = exchange.node_dedup if options else exchange.direct
    there, back = (traffic_matrix(function(phase, r, p, c, MODEL, **options), c.n_gpus) for phase in ("dispatch", "combine"))
    assert (back == there.T * (MODEL.combine_token_bytes / MODEL.dispatch_token_bytes)).all()


# names matter to by_source (expert e begins with replica e mod replicas) and, among equal optima, to lp_split
NAMELESS = sorted({*replicas.__all__} - {"by_source", "lp_split"})


@pytest.mark.parametrize("function", EXCHANGES)
@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8), rule=st.sampled_from(NAMELESS))
def test_the_names_of_the_experts_do_not_matter(function, seed, shape, spare, rule):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, rule)
    name = rng.permutation(N_EXPERTS)
    asked = np.where(r.asked < 0, -1, name[r.asked])
    renamed, moved = replace(r, asked=asked, assigned=asked), replace(p, expert_of=name[p.expert_of])
    for phase in ("dispatch", "combine"):
        one, other = function(phase, r, p, c, MODEL), function(phase, renamed, moved, c, MODEL)
        for column in ("src", "dst", "nbytes", "release", "chunk", "after_start", "after"):
            assert (getattr(one, column) == getattr(other, column)).all()


@pytest.mark.parametrize("rule", replicas.__all__)
@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 8))
def test_replicas_share_the_load_of_their_expert_and_add_nothing(rule, seed, shape, spare):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, rule)
    slots = replicas.chosen_slots(r, p, c)
    assert ((slots >= 0) == (r.assigned >= 0)).all()
    assert (p.expert_of[slots[slots >= 0]] == r.assigned[r.assigned >= 0]).all()
    per_slot = np.bincount(slots[slots >= 0], minlength=p.n_slots)
    per_expert = np.bincount(p.expert_of, weights=per_slot, minlength=N_EXPERTS)
    assert (per_expert == np.bincount(r.assigned[r.assigned >= 0], minlength=N_EXPERTS)).all()


@relaxed
@given(seed=seeds, shape=shapes, spare=st.integers(0, 12))
def test_no_replica_is_nearer_than_the_nearest(seed, shape, spare):
    rng, c = np.random.default_rng(seed), cluster(*shape)
    r, p = routing(rng, c.n_gpus), placed(rng, c.n_gpus, spare, "nearest")
    away = (r.source[:, None] != p.gpu_of).astype(int) + (c.node_of[r.source][:, None] != c.node_of[p.gpu_of])    # 0, 1 or 2
    for token, (asked, slots) in enumerate(zip(r.assigned, replicas.chosen_slots(r, p, c), strict=True)):
        for expert, slot in zip(asked[asked >= 0], slots[asked >= 0], strict=True):
            assert away[token, slot] == away[token, p.expert_of == expert].min()


@relaxed
@given(n_gpus=st.integers(1, 12), n_experts=st.integers(1, 40), more=st.integers(0, 3))
def test_a_placement_fills_every_gpu_alike_and_gives_every_expert_a_slot(n_gpus, n_experts, more):
    slots = -(-n_experts // n_gpus) * n_gpus + more * n_gpus
    for name in ("contiguous", "round_robin", "random"):        # the others: tests/contracts/test_plugins.py
        p = place(name, n_experts, slots, n_gpus)
        assert (np.bincount(p.gpu_of, minlength=n_gpus) == slots // n_gpus).all()
        replicas_of = np.bincount(p.expert_of, minlength=n_experts)
        assert replicas_of.size == n_experts
        assert replicas_of.min() >= 1
        assert replicas_of.max() - replicas_of.min() <= 1
