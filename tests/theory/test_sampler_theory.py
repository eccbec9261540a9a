"""The sampler against closed forms. Tolerances come from the sampling error; seeds are fixed."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from clustersim.workload import sampler_popularity as families
from clustersim.workload.sampler import Batch
from clustersim.workload.sampler_kernel import alias_tables, choose_independent, quantiles, score_independent
from clustersim.workload.sampler_parameters import changed, load_parameters
from clustersim.workload.sampler_popularity import concentration, inclusion, plackett_luce_weights
from clustersim.workload.sampler_process import ROUNDS, Process


def process(layers=1, experts=16, top_k=2, seed=3, **keys):
    return Process(changed(load_parameters("moderate"), keys), n_layers=layers, n_experts=experts, top_k=top_k, seed=seed)


def drawn(p, layer=0, sequences=400, length=64):
    batch = Batch(process=p, n_gpus=sequences, tokens_per_gpu=length, sequence=length)
    return batch.scores(layer, 0, sequences * length).reshape(sequences, length, -1)


def independent(weights, tokens, k, seed=5, sharpness=1.0):
    """Ids and gate weights [tokens, k] of tokens with these Plackett-Luce weights."""
    heavy = np.array([weights], float)
    where = (np.array([seed], np.uint64), np.zeros(1, np.int64), np.zeros(1, np.int64), np.array([tokens]))
    ids, gates = np.empty((tokens, k), np.int64), np.empty((tokens, k))
    choose_independent(*where, *alias_tables(heavy), heavy, sharpness, ids, gates)
    scores = np.empty((tokens, heavy.shape[1]), np.float32)
    score_independent(*where, heavy, np.float32(sharpness), scores)
    return ids, gates, scores


def plackett_luce(weights, order):
    """Probability of drawing these experts in this order."""
    left, chance = sum(weights), 1.0
    for e in order:
        chance *= weights[e] / left
        left -= weights[e]
    return chance


# ---- independent tokens


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1), (5, 3, 1, 0.5, 0.5), (100, 1, 1, 1, 1)])
def test_alias_tables_with_redrawing_are_plackett_luce(weights):
    """Chi-squared over all ordered triples of five experts, for choices from tables and for the best of noisy scores."""
    tokens = 60_000
    ids, _, scores = independent(weights, tokens, 3)
    for found in (ids, np.argsort(-scores, axis=1)[:, :3]):
        orders = list(itertools.permutations(range(5), 3))
        expected = np.array([plackett_luce(weights, order) for order in orders]) * tokens
        seen = np.bincount(found @ [25, 5, 1], minlength=125)[[a * 25 + b * 5 + c for a, b, c in orders]]
        assert seen.sum() == tokens
        statistic = ((seen - expected) ** 2 / expected).sum()
        assert stats.chi2.ppf(1e-4, len(orders) - 1) < statistic < stats.chi2.ppf(1 - 1e-4, len(orders) - 1)


def test_where_redrawing_would_take_for_ever_the_rest_is_looked_at():
    """One expert has all but a 10^-12th: the second and third are drawn from the others, still by their weights 1 : 2 : 3."""
    ids, _, _ = independent((1e12, 1, 2, 3), 30_000, 2)
    assert (ids[:, 0] == 0).all()
    seen = np.bincount(ids[:, 1], minlength=4)[1:]
    assert stats.chisquare(seen, np.array([1, 2, 3]) / 6 * 30_000).pvalue > 1e-4
    everyone, _, _ = independent((1e12, 1, 2, 3), 1000, 4)
    assert (np.sort(everyone, axis=1) == np.arange(4)).all()


def test_gate_weights_of_independent_tokens_are_the_softmax_of_their_best_noisy_scores():
    """Two ways to one distribution: the largest and the smallest weight, by the two-sample test of Kolmogorov and Smirnov."""
    tokens, weights = 20_000, (5, 3, 2, 1, 1, 0.2)
    for sharpness in (1.0, 2.5):
        _, gates, scores = independent(weights, tokens, 3, sharpness=sharpness)
        best = -np.sort(-scores.astype(float), axis=1)[:, :3]
        odds = np.exp(best - best[:, :1])
        other = odds / odds.sum(axis=1, keepdims=True)
        for j in (0, 2):
            assert stats.ks_2samp(gates[: tokens // 2, j], other[tokens // 2 :, j]).pvalue > 1e-4


def test_weights_from_inclusion_include_each_expert_about_so_often():
    """Exact inclusion probabilities by summing over all orders of k of 8 experts: as wanted for k = 1, within 2 % for 3. Of 4 of
    32 experts, by 200,000 tokens: within 1 % in the root mean square, beside the sampling error."""
    shares = np.array([0.24, 0.2, 0.16, 0.12, 0.1, 0.08, 0.06, 0.04])
    for k, tolerance in ((1, 1e-12), (2, 0.02), (3, 0.02)):
        used = inclusion(shares, k)
        weights = plackett_luce_weights(used, k)
        found = np.zeros(8)
        for order in itertools.permutations(range(8), k):
            found[list(order)] += plackett_luce(weights, order)
        assert found.sum() == pytest.approx(k)
        np.testing.assert_allclose(found, used, rtol=tolerance)
    many = inclusion(families.dirichlet(np.random.default_rng(0), 32, 2.0), 4)
    ids, _, _ = independent(plackett_luce_weights(many, 4), 200_000, 4)
    missed = np.bincount(ids.ravel(), minlength=32) / 200_000 - many
    allowed = (0.01**2 * many**2).sum() + 2 * (many * (1 - many)).sum() / 200_000
    assert (missed**2).sum() <= allowed


# ---- popularity


def test_dirichlet_and_lognormal_shares_have_the_expected_coefficient_of_variation():
    """Means over 4,000 draws of the squared CV: Dirichlet (E - 1)/(E alpha + 1) exactly; lognormal exp(sigma^2) - 1 for many
    experts (4,096 of them, where the sum hardly varies)."""
    rng = np.random.default_rng(0)
    for alpha in (0.25, 2.0, 25.0):
        squared = np.array([64**2 * families.dirichlet(rng, 64, alpha).var() for _ in range(4000)])
        assert abs(squared.mean() - 63 / (64 * alpha + 1)) <= 4 * squared.std() / math.sqrt(4000)
    squared = np.array([4096**2 * families.lognormal(rng, 4096, 0.5).var() for _ in range(400)])
    assert squared.mean() == pytest.approx(math.exp(0.25) - 1, rel=0.01)


def test_zipf_shares_are_ranks_to_a_power_and_power_law_loads_follow_their_density():
    """Power law of exponent 1: log load is uniform from 0 to log(0.8 x 8192); of exponent 1.5, 1 - x^-0.5 is uniform."""
    rng = np.random.default_rng(0)
    ranked = -np.sort(-families.zipf(rng, 100, 0.8))
    np.testing.assert_allclose(ranked / ranked[0], np.arange(1, 101.0) ** -0.8, rtol=1e-12)
    top = 0.8 * 8192
    for spread, uniform in ((1.0, lambda x: np.log(x) / np.log(top)), (1.5, lambda x: (1 - x**-0.5) / (1 - top**-0.5))):
        load = families.power_law(np.random.default_rng(1), 20_000, spread)
        load = load / load.min()            # the least of 20,000 is 1 to within a thousandth
        assert stats.kstest(uniform(np.minimum(load, top)), "uniform").statistic < 1.95 / math.sqrt(20_000) + 1e-3


def test_the_power_law_is_as_uneven_as_worst_cases():
    """At exponent 1: CV^2 = log(top) (top^2 - 1) / (2 (top - 1)^2) - 1, 1.84 squared; mean of 2,000 draws of 256 experts, of
    which the largest shares make a sample CV a little smaller."""
    rng = np.random.default_rng(0)
    cv = np.array([256 * families.power_law(rng, 256, 1.01).std() for _ in range(2000)])
    assert 1.7 < cv.mean() < 1.95


@pytest.mark.parametrize("alpha", [0.1, 1.0, 25.0])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (64, 6), (256, 8), (4, 3)])
def test_inclusion_adds_up_to_top_k_is_capped_and_else_proportional(alpha, experts, top_k):
    shares = families.dirichlet(np.random.default_rng(2), experts, alpha)
    used = inclusion(shares, top_k)
    assert used.sum() == pytest.approx(top_k)
    assert used.max() <= 0.98 + 1e-9
    assert used.min() > 0
    free = (used < 0.97) & (shares > 1e-5)
    if free.sum() > 1:
        ratio = used[free] / shares[free]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)


def test_concentration_is_the_inverse_of_the_coefficient_of_variation():
    for alpha in (0.3, 2.0, 30.0):
        assert concentration(math.sqrt(63 / (64 * alpha + 1)), 64) == pytest.approx(alpha)
    assert concentration(0.0, 64) == 1000


@pytest.mark.parametrize(("experts", "top_k", "alpha"), [(8, 2, 25.0), (32, 4, 2.0), (64, 6, 0.5), (256, 8, 2.0)])
def test_settled_biases_meet_the_popularity(experts, top_k, alpha):
    """Tokens without topic or memory are independent: counts of n tokens deviate by sqrt(n pi (1 - pi)). The bias itself comes
    from 16,384 vectors; steps of 0.8/t leave the error of 0.6 / 0.64 as many. Experts compete, which binds errors together
    and makes the sum smaller than chi-squared, except where the response of a bias is not the assumed one: 1.5 times."""
    p = process(experts=experts, top_k=top_k, alpha=alpha, topic=0, fast=0, slow=0)
    n = 64 * 1024
    batch = Batch(process=p, n_gpus=1, tokens_per_gpu=n, sequence=n)
    found = np.bincount(batch.choose(0)[0].ravel(), minlength=experts) / n
    used = p.used(0)[0]
    variance = used * (1 - used) * (1 / n + 0.64 / 0.6 / (ROUNDS * 512))
    often = used > 1e-3
    assert ((found - used)[often] ** 2 / variance[often]).sum() <= 1.5 * stats.chi2.ppf(0.9999, often.sum())
    assert found.std() / found.mean() == pytest.approx(used.std() / used.mean(), abs=0.05)


# ---- the latent process


def test_the_table_of_quantiles_is_normal():
    knots = quantiles().astype(float)
    a, b = knots[:-1], knots[1:]
    assert ((a * a + a * b + b * b) / 3).mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(knots[1:-1], stats.norm.ppf(np.arange(1, 4096) / 4096), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("keys", [
    {"topic": 0, "fast": 0, "slow": 0}, {"topic": 0.5, "fast": 0.3, "slow": 0.5}, {"topic": 0.9, "dimension": 3.5},
])  # fmt: skip
def test_logits_are_standard_normal_around_the_bias_whatever_the_loadings(keys):
    """One token of each of 20,000 sequences, which are independent: Kolmogorov's test for each expert."""
    p = process(experts=8, **keys)
    scores = drawn(p, sequences=20_000, length=8)[:, 7] / np.float32(p.parameters.sharpness)
    for e in range(8):
        shifted = scores[:, e] - p._layer(0).bias[0, e]
        assert stats.kstest(shifted.astype(float), "norm").pvalue > 1e-4


@pytest.mark.parametrize("keys", [
    {"topic": 0.3, "fast": 0, "slow": 0}, {"topic": 0, "fast": 0.6, "slow": 0}, {"topic": 0.1, "fast": 0.25, "slow": 0.6},
])  # fmt: skip
@pytest.mark.parametrize("lag", [1, 3, 16, 64])
def test_tokens_of_a_sequence_correlate_as_topic_and_memories_say(keys, lag):
    """Covariance of two logits `lag` apart: topic + (1 - topic) times that of x + memories, summed here term by term over the
    tokens x that both remember. Sequences are independent: their spread gives the error."""
    p = process(experts=8, **keys)
    q = p.parameters
    reach = np.arange(1, 20_000)
    response = np.r_[
        q.own[0], q.fast[0] * math.sqrt(1 - q.fast_memory**2) * q.fast_memory ** (reach - 1)
        + q.slow[0] * math.sqrt(1 - q.slow_memory**2) * q.slow_memory ** (reach - 1),
    ]  # fmt: skip
    memory = (response[lag:] * response[: response.size - lag]).sum()
    expected = q.topic[0] + (1 - q.topic[0]) * memory
    scores = drawn(p, sequences=1500, length=128).astype(float) / q.sharpness - p._layer(0).bias[0, :8]
    each = (scores[:, lag:, :] * scores[:, : 128 - lag, :]).mean(axis=(1, 2))
    assert abs(each.mean() - expected) <= 4.5 * each.std() / math.sqrt(each.size)


def test_latent_vectors_turn_by_the_angle_between_layers():
    """With alignment 1 a layer's directions are those of the one before, in another order. An expert and its partner three
    layers on have logits of correlation cos(3/4 turn); the error is (1 - rho^2)/sqrt(n)."""
    p = process(layers=5, experts=8, alignment=1.0, topic=0, fast=0, slow=0)
    first, later = (drawn(p, layer, sequences=20_000, length=1)[:, 0] for layer in (0, 3))
    partner = np.argmax(p._layer(3).directions.T @ p._layer(0).directions, axis=0)
    rho = math.cos(0.75 * p.parameters.turn)
    for e in range(8):
        found = np.corrcoef(first[:, e], later[:, partner[e]])[0, 1]
        assert abs(found - rho) <= 4.5 * (1 - rho**2) / math.sqrt(20_000)


def test_independent_tokens_choose_independently_in_every_layer():
    """How often a token takes expert e in one layer and f in the next: chi-squared of the 8 x 8 table, 49 degrees; top-1."""
    p = process(layers=2, experts=8, top_k=1, tokens="independent")
    batch = Batch(process=p, n_gpus=1, tokens_per_gpu=40_000, sequence=100)
    first, second = (batch.choose(layer)[0][:, 0] for layer in (0, 1))
    table = np.bincount(first * 8 + second, minlength=64).reshape(8, 8)
    table = table[table.sum(1) > 50][:, table.sum(0) > 50]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_without_alignment_directions_of_two_layers_have_nothing_in_common():
    """Products of 200 x 200 pairs of random unit vectors of d dimensions have mean 0 and variance 1/d."""
    p = process(layers=2, experts=200, alignment=0.0, dimension=6)
    products = (p._layer(1).directions.T @ p._layer(0).directions).astype(float)
    assert products.var() == pytest.approx(1 / 6, rel=0.1)
    assert abs(np.sort(np.abs(products))[-1].max()) < 1
