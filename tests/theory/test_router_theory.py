"""Closed forms and published figures of routers on uniform scores. Tolerances come from the sampling error."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from clustersim.workload import balancing, routers
from clustersim.workload.source import from_sampler


def uniform(seed, tokens, n_experts):
    return np.random.default_rng(seed).random((tokens, n_experts), dtype=np.float32)


def independent(n_experts, seed):
    """Scores of tokens that know nothing of each other, over experts of Dirichlet(2) popularity."""
    model = SimpleNamespace(name="toy", n_experts=n_experts, top_k=2, n_moe_layers=4, vocab=10)
    return from_sampler(model, 1, 4096, seed, tokens="independent", alpha=2.0, domains=1).scores


def random_ids(seed, tokens, n_experts, k):
    return routers.random(np.empty((tokens, n_experts)), k=k, rng=np.random.default_rng(seed))[0]


def mean_within(values, expected, sigmas, rounding=0.0):
    error = values.std(ddof=1) / math.sqrt(values.size)
    assert abs(values.mean() - expected) <= sigmas * error + rounding


def nodes_visited(ids, n_nodes):
    return np.sum([(ids // (256 // n_nodes) == node).any(axis=1) for node in range(n_nodes)], axis=0)


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"n_groups": 1, "best_groups": 1}, {2: 1.9930, 4: 3.6142, 8: 5.2947}),
        ({"n_groups": 8, "best_groups": 4}, {2: 1.966, 4: 3.117, 8: 3.954}),
        ({"n_groups": 8, "best_groups": 4, "group_score": "max"}, {8: 3.983}),
    ],
    ids=["ungrouped", "deepseek_v3", "deepep_benchmark"],
)
def test_distinct_nodes_per_token_of_256_experts_top_8(options, published):
    """On uniform scores, nodes of 8 GPUs, EP16, EP32, EP64; without groups n (1 - C(E - E/n, k) / C(E, k))."""
    ids, _ = routers.group_limited(uniform(1, 60_000, 256), k=8, score="none", **options)
    for n_nodes, expected in published.items():
        digits = 0.00005 if options["n_groups"] == 1 else 0.0005       # what the figure is rounded to
        mean_within(nodes_visited(ids, n_nodes), expected, 3, digits)


@pytest.mark.parametrize("k", [1, 8])
def test_law_8_the_random_router_loads_every_gpu_alike_and_round_robin_exactly(k):
    """Sum (n - m)^2 / m is chi-squared with E - 1 degrees, times (E - k)/(E - 1) as a token's experts are distinct."""
    tokens, n_experts = 40_000, 64
    loads = np.bincount(random_ids(2, tokens, n_experts, k).ravel(), minlength=n_experts)
    mean = tokens * k / n_experts
    statistic = ((loads - mean) ** 2 / mean).sum() * (n_experts - 1) / (n_experts - k)
    assert stats.chi2.ppf(1e-4, n_experts - 1) < statistic < stats.chi2.ppf(1 - 1e-4, n_experts - 1)
    in_turn, _ = routers.round_robin(np.empty((n_experts * 5, n_experts)), k=k)
    assert set(np.bincount(in_turn.ravel())) == {5 * k}


@pytest.mark.parametrize(("n_gpus", "n_experts", "k"), [(8, 64, 4), (16, 256, 8)])
def test_law_9_a_token_visits_a_gpu_with_the_hypergeometric_probability(n_gpus, n_experts, k):
    """P(visit) = 1 - C(E - E/G, k) / C(E, k)."""
    tokens = 20_000
    expected = 1 - math.comb(n_experts - n_experts // n_gpus, k) / math.comb(n_experts, k)
    for ids in (random_ids(3, tokens, n_experts, k), routers.top_k(uniform(4, tokens, n_experts), k=k)[0]):
        visits = np.array([(ids // (n_experts // n_gpus) == gpu).any(axis=1).mean() for gpu in range(n_gpus)])
        assert (np.abs(visits - expected) <= 5 * math.sqrt(expected * (1 - expected) / tokens)).all()


def test_law_10_what_the_random_router_overflows_follows_the_binomial_tail():
    """An expert's load is Binomial(T, k/E); 300 batches of 512 tokens, capacity 1.0 and 1.25 of the mean."""
    tokens, n_experts, k, batches = 512, 16, 2, 300
    ids = random_ids(5, tokens * batches, n_experts, k).reshape(batches, -1)
    loads = np.array([np.bincount(batch, minlength=n_experts) for batch in ids])
    for room in (64, 80):
        tail = sum((j - room) * stats.binom.pmf(j, tokens, k / n_experts) for j in range(room + 1, tokens + 1))
        mean_within(np.maximum(loads - room, 0).sum(axis=1).astype(float), n_experts * tail, 4)


def test_gshard_keeps_the_second_expert_as_often_as_its_weight_says():
    """Kept with probability min(1, 2 g2): the number kept is a sum of independent Bernoulli draws."""
    scores = np.random.default_rng(6).normal(size=(50_000, 8))
    chance = np.minimum(1, 2 * routers.top_k(scores, k=2)[1][:, 1])
    kept = (routers.gshard(scores, rng=np.random.default_rng(7))[0][:, 1] >= 0).sum()
    assert abs(kept - chance.sum()) <= 4 * math.sqrt((chance * (1 - chance)).sum())


def test_top_k_of_independent_scores_is_plackett_luce():
    """First choices follow p; the second is p_j / (1 - p_i) given the first i, p from the scores' own popularity."""
    tokens = 300_000
    ids, _ = routers.top_k(independent(5, seed=8)(3, 0, tokens), k=2)
    share = np.bincount(ids[: tokens // 2, 0], minlength=5) / (tokens // 2)
    first, second = ids[tokens // 2 :].T
    for i in range(5):
        others, n = np.delete(np.arange(5), i), np.count_nonzero(first == i)
        expected = share[others] / share[others].sum()
        found = np.bincount(second[first == i], minlength=5)[others] / n
        error = np.sqrt(expected * (1 - expected) * (1 / n + 1 / (tokens / 2 * (1 - share[i]))))
        assert (np.abs(found - expected) <= 5 * error).all()


def test_the_sign_rule_brings_the_loads_to_within_what_sampling_and_one_update_leave():
    """32 experts of Dirichlet(2) popularity, top 4, 8,192 tokens a step, rate 0.003 on sigmoids. The busiest expert begins with
    more than twice the mean m = T k/E. A load that is balanced on average deviates by sqrt(m (1 - k/E)), the largest of 32 by
    less than 4 of that. And a bias that is right on average is off by one update, whose effect on a load is measured here."""
    process, rate, k, tokens = independent(32, seed=9), 0.003, 4, 8192

    def route(scores, bias):
        return routers.group_limited(scores, k=k, n_groups=1, best_groups=1, bias=bias)[0]

    *states, (bias, _, _) = balancing.steps(
        lambda first, last: process(0, first, last), route, lambda bias, seen: balancing.sign(bias, seen, rate=rate),
        n_experts=32, k=k, tokens=tokens, updates=200, activate=lambda scores: scores,
    )  # fmt: skip
    violation = np.array([balancing.max_violation(counts) for _, counts, _ in states])
    scores = process(0, 1 << 20, (1 << 20) + tokens)
    counts = [np.bincount(route(scores, bias + rate * np.eye(32)[e] * sign).ravel())[e] for e in range(32) for sign in (0, 1)]
    mean = tokens * k / 32
    bound = (4 * math.sqrt(mean * (1 - k / 32)) + np.diff(np.reshape(counts, (32, 2))).max()) / mean
    assert violation[0] > 1
    assert violation[-20:].max() < bound < violation[0] / 2
