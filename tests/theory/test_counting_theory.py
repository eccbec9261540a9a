"""Closed forms of uniform routing. Every tolerance is computed from the sampling error of the number it judges."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from clustersim import exchange
from clustersim.exchange.copies import destinations, distinct
from clustersim.types import Choices, Routing
from clustersim.workload import capacity_policies
from clustersim.workload.capacity import limit
from clustersim.workload.routers import random
from clustersim.workload.sampler import Batch, balanced
from clustersim.workload.sampler_parameters import changed, load_parameters
from clustersim.workload.sampler_process import Process
from tests import placed
from tests.contests import assigned, rule


def cluster(n_nodes, gpus_per_node=8):
    gpus = np.arange(n_nodes * gpus_per_node)
    return SimpleNamespace(
        n_gpus=gpus.size, n_nodes=n_nodes, gpus_per_node=gpus_per_node,
        node_of=gpus // gpus_per_node, local_of=gpus % gpus_per_node,
    )


def uniform(seed, tokens, n_experts, top_k, n_gpus=1):
    rng = np.random.default_rng(seed)
    ids, _ = random(np.empty((tokens, n_experts)), k=top_k, rng=rng)
    weights = -np.sort(-rng.random(ids.shape), axis=1)
    source = np.arange(tokens) * n_gpus // tokens
    index = np.arange(tokens) - np.searchsorted(source, source)
    return Routing(asked=ids, assigned=ids, weights=weights, source=source, index=index, capacity=None)


def within(values, expected, sigmas):
    """The mean of independent `values` is `expected`, up to so many standard errors."""
    assert abs(values.mean() - expected) <= sigmas * values.std(ddof=1) / math.sqrt(values.size)


@pytest.mark.parametrize("top_k", [1, 4])
def test_a_uniform_router_loads_every_expert_alike(top_k):
    """Σ (n_e − m)²/m is χ² of E − 1 degrees, times (E − k)/(E − 1) because a token's k experts are distinct.

    Var n_e = T (k/E)(1 − k/E), the covariances add up to its negative, and m = T k/E.
    """
    n_experts, tokens = 32, 40_000
    loads = np.bincount(uniform(3, tokens, n_experts, top_k).asked.ravel(), minlength=n_experts)
    mean = tokens * top_k / n_experts
    statistic = ((loads - mean) ** 2 / mean).sum() * (n_experts - 1) / (n_experts - top_k)
    assert stats.chi2.ppf(1e-4, n_experts - 1) < statistic < stats.chi2.ppf(1 - 1e-4, n_experts - 1)


@pytest.mark.parametrize("rule", ["contiguous", "round_robin"])
@pytest.mark.parametrize(("n_experts", "n_gpus"), [(64, 16), (32, 64)])
def test_a_uniform_router_loads_every_gpu_alike_with_and_without_replicas(rule, n_experts, n_gpus):
    """Top-1: GPU loads are multinomial given that the replicas of an expert are hit alike; the hash only splits by index."""
    tokens = 64_000
    r = uniform(5, tokens, n_experts, 1)
    p = getattr(placed, rule)(n_experts, max(n_experts, n_gpus), n_gpus)
    loads = np.bincount(destinations(r, p, cluster(n_gpus // 8)).ravel(), minlength=n_gpus)
    statistic = ((loads - tokens / n_gpus) ** 2 / (tokens / n_gpus)).sum()
    assert stats.chi2.ppf(1e-4, n_gpus - 1) < statistic < stats.chi2.ppf(1 - 1e-4, n_gpus - 1)


@pytest.mark.parametrize("rule", ["contiguous", "round_robin"])
def test_balanced_routing_loads_every_gpu_exactly_alike(rule):
    n_experts, n_gpus, tokens = 64, 16, 32
    ids, _ = balanced(np.arange(n_gpus * tokens), n_experts=n_experts, top_k=4, seed=0, layer=0)
    p = getattr(placed, rule)(n_experts, n_experts, n_gpus)
    r = Routing(
        asked=ids, assigned=ids, weights=None, source=np.repeat(np.arange(n_gpus), tokens),
        index=np.tile(np.arange(tokens), n_gpus), capacity=None,
    )
    assert (np.bincount(destinations(r, p, cluster(2)).ravel()) == tokens * 4).all()


@pytest.mark.parametrize(("n_gpus", "n_experts", "top_k"), [(8, 64, 4), (16, 256, 8), (64, 64, 6)])
def test_a_token_visits_a_gpu_with_the_hypergeometric_probability(n_gpus, n_experts, top_k):
    """P(visit) = 1 − C(E − E/G, k)/C(E, k): the k distinct experts all miss the E/G that the GPU holds."""
    tokens = 20_000
    r = uniform(11, tokens, n_experts, top_k)
    gpus = distinct(destinations(r, placed.contiguous(n_experts, n_experts, n_gpus), cluster(n_gpus // 8)))
    expected = 1 - math.comb(n_experts - n_experts // n_gpus, top_k) / math.comb(n_experts, top_k)
    visits = np.bincount(gpus[gpus >= 0], minlength=n_gpus) / tokens
    assert (np.abs(visits - expected) <= 5 * math.sqrt(expected * (1 - expected) / tokens)).all()


@pytest.mark.parametrize(("n_nodes", "published"), [(2, 1.9930), (4, 3.6142), (8, 5.2947)])
def test_distinct_nodes_per_token_are_the_nodes_times_the_probability_of_a_visit(n_nodes, published):
    """256 experts, top-8; n (1 − C(E − E/n, k)/C(E, k)), which is also DeepEP's own estimate of its fan-out."""
    n_experts, top_k, c = 256, 8, cluster(n_nodes)
    expected = n_nodes * (1 - math.comb(n_experts - n_experts // n_nodes, top_k) / math.comb(n_experts, top_k))
    assert abs(expected - published) < 5e-5
    r = uniform(7, 40_000, n_experts, top_k, c.n_gpus)
    gpus = destinations(r, placed.contiguous(n_experts, n_experts, c.n_gpus), c)
    nodes = distinct(c.node_of[gpus])
    within((nodes >= 0).sum(axis=0), expected, 3)


def test_node_dedup_sends_over_the_nic_one_copy_per_other_node_that_is_visited():
    """Each of the n − 1 other nodes is visited with the hypergeometric probability, whatever the token's own node is."""
    n_experts, top_k, c = 64, 4, cluster(4)
    model = SimpleNamespace(top_k=top_k, dispatch_token_bytes=1.0, combine_token_bytes=1.0)
    r = uniform(13, 32_000, n_experts, top_k, c.n_gpus)
    t = exchange.node_dedup(
        "dispatch", r, placed.contiguous(n_experts, n_experts, c.n_gpus), c, model, metadata_bytes=0
    )
    nic = c.node_of[t.src] != c.node_of[t.dst]
    visit = 1 - math.comb(n_experts - n_experts // 4, top_k) / math.comb(n_experts, top_k)
    per_gpu = np.bincount(t.src[nic], weights=t.nbytes[nic], minlength=c.n_gpus) / 1000     # copies per token, 1000 tokens each
    within(per_gpu, 3 * visit, 4)


def overflow(tokens, p, room):
    """Choices beyond `room` that one of many experts has on average: its load is Binomial(tokens, p)."""
    return sum((j - room) * stats.binom.pmf(j, tokens, p) for j in range(room + 1, tokens + 1))


@pytest.mark.parametrize("policy", sorted(set(capacity_policies.__all__) - {*capacity_policies.ELSEWHERE}))
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.25])
def test_dropped_choices_follow_the_binomial_tail(policy, factor):
    """Tokens choose independently, so an expert's load is Binomial(T, k/E); what exceeds the capacity is dropped."""
    tokens, n_experts, top_k, batches = 512, 16, 2, 200
    p = top_k / n_experts
    room = math.ceil(factor * tokens * p)
    expected = n_experts * overflow(tokens, p, room)
    r = uniform(17, tokens * batches, n_experts, top_k, batches)       # every pool is a batch of its own
    kept = assigned(
        policy, r.asked, np.full(batches, room), weights=r.weights, source=r.source, n_experts=n_experts,
        rng=np.random.default_rng(1),
    )
    within(np.bincount(r.source, weights=(kept < 0).sum(axis=1), minlength=batches), expected, 4)


@pytest.mark.parametrize(
    ("preset", "factor", "percent"),
    [
        ("switch", 1.0, "4.94"), ("switch", 1.1, "1.66"), ("switch", 1.25, "0.127"),            # 64, 70, 80 places
        ("megatron", 1.0, "4.94"), ("megatron", 1.1, "1.34"), ("megatron", 1.25, "0.127"),      # 64, 71, 80
    ],
)
def test_what_a_uniform_top_1_router_drops_at_usual_factors(preset, factor, percent):
    """4,096 tokens, 64 experts; a capacity rounded down (Switch) or up (Megatron-LM). Sigma is that of 300 batches' mean."""
    tokens, n_experts, batches = 4096, 64, 300
    what = rule(preset, factor=factor, drop="position", pad=False, group_tokens=None, scope="source")
    source, index = np.repeat(np.arange(batches), tokens), np.tile(np.arange(tokens), batches)
    ids = np.random.default_rng(29).integers(0, n_experts, (tokens * batches, 1))
    done = limit(
        np.random.default_rng(0), what, Choices(ids=ids, weights=None), source=source, index=index, n_gpus=batches,
        n_experts=n_experts, top_k=1,
    )
    room = int(done.room[0, 0])
    expected = n_experts * overflow(tokens, 1 / n_experts, room) / tokens
    assert f"{100 * expected:.{len(percent) - 2}f}" == percent
    within(np.bincount(source, weights=done.assigned[:, 0] < 0) / tokens, expected, 3)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_popularity_varies_between_experts_as_dirichlet_says(alpha):
    """Symmetric Dirichlet: E[E Σ p²] − 1 = (E − 1)/(E α + 1). E Σ n(n − 1)/(T(T − 1)) estimates E Σ p² without bias."""
    n_experts, tokens, layers = 16, 400, 600
    parameters = changed(load_parameters("moderate"), {"alpha": alpha, "tokens": "independent"})
    process = Process(parameters, n_layers=layers, n_experts=n_experts, top_k=1, seed=19)
    batch = Batch(process=process, n_gpus=1, tokens_per_gpu=tokens, sequence=tokens)
    spread = []
    for layer in range(layers):
        n = np.bincount(batch.choose(layer)[0].ravel(), minlength=n_experts)
        spread.append(n_experts * (n * (n - 1)).sum() / (tokens * (tokens - 1)) - 1)
    within(np.array(spread), (n_experts - 1) / (n_experts * alpha + 1), 4)

