"""Routing that is drawn or laid out, and the tokens of a pass however they came about."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.types import InputError, Trace
from clustersim.workload import sampler
from clustersim.workload.sampler import Batch, balanced
from clustersim.workload.sampler_parameters import Domain, changed, load_parameters, preset_names
from clustersim.workload.sampler_process import Process
from clustersim.workload.source import from_balanced, from_sampler, from_trace

MODEL = SimpleNamespace(name="toy", n_experts=8, top_k=2, n_moe_layers=4, vocab=100)
KINDS = ("correlated", "independent")


def recorded(*, tokens=12, layers=3, experts=8, top_k=2, weights=True):
    rng = np.random.default_rng(0)
    ids = rng.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k].astype(np.int16)
    return Trace(
        expert_ids=ids, gate_weights=rng.random(ids.shape).astype(np.float32) if weights else None,
        step=np.zeros(tokens, int), rank=np.zeros(tokens, int), seq=np.arange(tokens) // 4, pos=np.arange(tokens) % 4,
        phase=np.zeros(tokens, np.uint8), n_experts=experts,
    )


def batch(*, experts=8, top_k=2, layers=3, seed=1, extra=0, gpus=4, tokens_per_gpu=50, sequence=16, **keys):
    process = Process(
        changed(load_parameters("moderate"), keys), n_layers=layers, n_experts=experts, top_k=top_k, seed=seed, extra=extra
    )
    return Batch(process=process, n_gpus=gpus, tokens_per_gpu=tokens_per_gpu, sequence=sequence)


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize(("experts", "top_k"), [(8, 1), (8, 3), (8, 8), (70, 6), (300, 20)])
def test_drawn_tokens_pick_distinct_experts_with_weights_that_fall_and_sum_to_one(tokens, alpha, experts, top_k):
    ids, weights = batch(experts=experts, top_k=top_k, tokens=tokens, alpha=alpha).choose(1)
    assert ids.shape == weights.shape == (200, top_k)
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < experts
    assert all(len(set(row)) == top_k for row in ids)
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (8, 8), (61, 6), (256, 8), (300, 20)])
def test_correlated_tokens_go_to_their_best_scores_with_the_softmax_of_these(experts, top_k):
    b = batch(experts=experts, top_k=top_k, domains=3)
    ids, weights = b.choose(2)
    scores = b.scores(2, 0, 200)
    assert scores.dtype == np.float32
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    assert (ids == order).all()
    odds = np.exp(np.take_along_axis(scores, order, axis=1).astype(float))
    np.testing.assert_allclose(weights, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize("tokens", KINDS)
def test_tokens_do_not_depend_on_pieces_order_layers_or_how_many_gpus_there_are(tokens):
    b = batch(tokens=tokens, domains=2)
    whole = b.scores(2, 0, 200)
    edges = [0, 1, 15, 16, 49, 50, 51, 130, 200]
    for first, last in pairwise(edges):
        assert (batch(tokens=tokens, domains=2).scores(2, first, last) == whole[first:last]).all()
    assert b.scores(0, 7, 7).shape == (0, 8)
    ids, weights = b.choose(2)
    late = batch(tokens=tokens, domains=2)
    for layer in (1, 0):
        late.choose(layer)
    more = batch(tokens=tokens, domains=2, gpus=9)
    for other in (late.choose(2), tuple(part[:200] for part in more.choose(2))):
        assert (other[0] == ids).all()
        assert (other[1] == weights).all()
    assert (more.scores(2, 200, 450) == b.scores(2, 200, 450)).all(), "numbers beyond the pass are those of more GPUs"
    far = 1 << 40
    assert np.isfinite(b.scores(0, far + 3, far + 77)).all()


@pytest.mark.parametrize("tokens", KINDS)
def test_a_gpus_first_tokens_stay_when_it_gets_more(tokens):
    short, long = batch(tokens=tokens, tokens_per_gpu=32), batch(tokens=tokens, tokens_per_gpu=50)
    one, other = short.choose(0)[0].reshape(4, 32, 2), long.choose(0)[0].reshape(4, 50, 2)
    assert (one == other[:, :32]).all()


@pytest.mark.parametrize("tokens", KINDS)
def test_layers_seeds_sequences_and_gpus_differ(tokens):
    b = batch(tokens=tokens)
    ids = b.choose(0)[0]
    for other in (b.choose(1)[0], batch(tokens=tokens, seed=2).choose(0)[0]):
        assert (ids != other).any()
    assert (ids[:16] != ids[16:32]).any()
    assert (ids[:16] != ids[50:66]).any()


@pytest.mark.parametrize("tokens", KINDS)
def test_columns_beside_the_experts_get_scores_and_are_never_chosen(tokens):
    plain, more = batch(tokens=tokens), batch(tokens=tokens, extra=3)
    assert more.scores(0, 0, 200).shape == (200, 11)
    assert more.choose(0)[0].max() < 8
    assert np.isfinite(more.scores(0, 0, 200)).all()
    assert plain.scores(0, 0, 200).shape == (200, 8)


def test_a_sequence_is_of_one_domain_and_domains_come_by_their_shares():
    """2,000 draws: the share of the first domain, 1/4, deviates by sqrt(3/16 / 2000)."""
    parameters = load_parameters("moderate")
    domains = tuple(Domain(name=n, share=s, spread=parameters.domains[0].spread) for n, s in (("a", 0.25), ("b", 0.75)))
    process = Process(replace(parameters, domains=domains), n_layers=1, n_experts=8, top_k=2, seed=0)
    b = Batch(process=process, n_gpus=1000, tokens_per_gpu=20, sequence=10)
    pieces = b.pieces(0, 20_000)
    assert pieces.count.tolist() == [10] * 2000
    assert (pieces.domain == 0).mean() == pytest.approx(0.25, abs=4 * np.sqrt(3 / 16 / 2000))


@pytest.mark.parametrize("tokens", KINDS)
@pytest.mark.parametrize(("tokens_per_gpu", "sequence"), [(50, 16), (48, 16), (10, 16)])
def test_counts_are_those_of_the_tokens_themselves(tokens, tokens_per_gpu, sequence):
    """As long as there are no more sequences than are counted one by one."""
    b = batch(tokens=tokens, tokens_per_gpu=tokens_per_gpu, sequence=sequence, domains=2)
    ids = b.choose(1)[0].reshape(4, tokens_per_gpu * 2)
    assert b.count(1).tolist() == [np.bincount(row, minlength=8).tolist() for row in ids]
    assert b.notes == ()


def test_counts_of_more_sequences_are_put_together_from_some_of_them(monkeypatch):
    """Every GPU still has all its choices; sequences beyond the pool repeat one of it, the same in every layer."""
    monkeypatch.setattr(sampler, "POOL", 7)
    b = batch(gpus=30, tokens_per_gpu=16, sequence=16)
    pool = [b.count(layer)[:7] for layer in (0, 1)]
    assert (pool[0] == [np.bincount(row, minlength=8) for row in b.choose(0)[0].reshape(30, 32)[:7]]).all()
    found = [[next(i for i, one in enumerate(pool[layer]) if (one == row).all()) for row in b.count(layer)] for layer in (0, 1)]
    assert found[0] == found[1]
    assert len(set(found[0])) == 7
    assert (batch(gpus=30, tokens_per_gpu=40, sequence=16).count(0).sum(axis=1) == 80).all()
    assert b.notes == ("counts of 30 sequences are put together from those of 7",)


def test_every_preset_runs_and_they_differ_in_how_uneven_experts_are():
    """Mean load CV over layers of the recorded order: balanced < web_text mixed < moderate < narrow < worst."""
    def unevenness(name):
        process = Process(load_parameters(name), n_layers=8, n_experts=64, top_k=6, seed=0)
        return np.mean([(used := process.used(layer).mean(0)).std() / used.mean() for layer in range(8)])

    assert set(preset_names()) == {"balanced", "moderate", "narrow_domain", "power_law", "web_text", "worst_case"}
    cv = {name: unevenness(name) for name in preset_names()}
    assert sorted(cv, key=lambda name: cv[name])[:4] == ["balanced", "web_text", "moderate", "narrow_domain"]
    for name in preset_names():
        workload = from_sampler(MODEL, 2, 8, 0, preset=name)
        assert workload.choose(3).ids.shape == (16, 2)


@pytest.mark.parametrize(("n_experts", "top_k"), [(6, 3), (8, 3), (256, 8), (60, 7), (4, 4)])
def test_balanced_deals_experts_like_cards(n_experts, top_k):
    """No token has an expert twice, and as many tokens as there are experts use up whole decks, top_k of them."""
    ids, weights = balanced(np.arange(5 * n_experts), n_experts=n_experts, top_k=top_k, seed=1, layer=2)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    for i in range(5):
        assert (np.bincount(ids[i * n_experts : (i + 1) * n_experts].ravel(), minlength=n_experts) == top_k).all()
    assert (weights == 1 / top_k).all()
    other, _ = balanced(np.arange(5 * n_experts), n_experts=n_experts, top_k=top_k, seed=1, layer=3)
    assert (n_experts == top_k) or (other != ids).any()


def test_balanced_tokens_visit_as_many_nodes_as_random_ones():
    """Of 8 nodes of 32 experts each, 8 of 256 at random visit 8 (1 - C(224, 8) / C(256, 8)): 5.29.

    Tokens of a deck push each other to other nodes, if anything, so the error of independent tokens is an upper one.
    """
    ids, _ = balanced(np.arange(40 * 256), n_experts=256, top_k=8, seed=0, layer=0)
    nodes = np.array([len(set(row)) for row in (ids // 32).tolist()])
    miss = np.prod([(224 - i) / (256 - i) for i in range(8)])
    assert abs(nodes.mean() - 8 * (1 - miss)) < 4 * nodes.std() / np.sqrt(nodes.size)


def test_balanced_loads_every_expert_alike_from_every_gpu():
    w = from_balanced(MODEL, 3, 12)
    ids = w.choose(0).ids
    for gpu in range(3):
        assert (np.bincount(ids[w.source == gpu].ravel(), minlength=8) == 12 * 2 / 8).all()


def test_made_up_tokens_stand_in_sequences_of_the_length_asked_for():
    w = from_sampler(MODEL, 2, 5, seed=0, sequence=3)
    assert w.source.tolist() == [0] * 5 + [1] * 5
    assert w.index.tolist() == [0, 1, 2, 3, 4] * 2
    assert w.context.tolist() == [1, 2, 3, 1, 2] * 2


def test_the_choices_of_a_sampled_workload_offer_the_scores_behind_them():
    w = from_sampler(MODEL, 2, 5, seed=0, extra=2, sequence=3)
    chosen = w.choose(1)
    scores = chosen.scores(0, 10)
    assert scores.shape == (10, 8)
    assert w.scores(1, 0, 10).shape == (10, 10)
    assert (chosen.ids == np.argsort(-scores, axis=1, kind="stable")[:, :2]).all()


def test_a_recorded_token_keeps_its_experts_and_weights_wherever_it_starts():
    trace = recorded()
    w = from_trace(trace, MODEL, 3, 4)
    chosen = w.choose(1)
    assert (chosen.ids == trace.expert_ids[:, 1]).all()
    assert (chosen.weights == trace.gate_weights[:, 1]).all()
    assert w.source.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_weights_that_were_not_recorded_stay_unknown():
    assert from_trace(recorded(weights=False), MODEL, 3, 4).choose(0).weights is None


def test_a_shorter_trace_repeats_its_layers_and_says_so():
    w = from_trace(recorded(layers=3), MODEL, 3, 4)
    assert (w.choose(3).ids == w.choose(0).ids).all()
    assert w.notes == ("the trace's 3 layers repeat to fill the 4 MoE layers of toy",)


def test_a_longer_trace_gives_its_first_layers_and_says_so():
    assert from_trace(recorded(layers=6), MODEL, 3, 4).notes == ("the first 4 of the trace's 6 layers are used, as toy has",)


def test_tokens_used_again_or_not_at_all_are_noted():
    assert from_trace(recorded(layers=4), MODEL, 6, 4).notes == (
        "sequences are dealt again: a recorded token is used 2 times, at most 2",
    )
    assert from_trace(recorded(layers=4), MODEL, 1, 4).notes == ("4 of the trace's 12 tokens are used",)


@pytest.mark.parametrize(("shape", "said"), [({"experts": 16}, "16 experts, top-2"), ({"top_k": 3}, "8 experts, top-3")])
def test_a_trace_of_another_shape_is_refused_naming_both(shape, said):
    with pytest.raises(InputError, match=f"^trace.path=x: {said}; model toy has 8 experts, top-2; trace=sampled draws"):
        from_trace(recorded(**shape), MODEL, 3, 4, name="trace.path=x")


def test_less_than_one_token_is_refused():
    for make in (lambda n: from_balanced(MODEL, 2, n), lambda n: from_sampler(MODEL, 2, n, seed=0)):
        with pytest.raises(InputError, match=r"workload\.tokens_per_gpu=0"):
            make(0)
    with pytest.raises(InputError, match=r"trace\.sequence=0"):
        from_balanced(MODEL, 2, 4, sequence=0)
