"""Routing that is drawn or laid out, and the tokens of a pass however they came about."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.types import InputError, Trace
from clustersim.workload.sampler import balanced, dirichlet
from clustersim.workload.source import from_balanced, from_sampler, from_trace

MODEL = SimpleNamespace(name="toy", n_experts=8, top_k=2, n_moe_layers=4)


def recorded(*, tokens=12, layers=3, experts=8, top_k=2, weights=True):
    rng = np.random.default_rng(0)
    ids = rng.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k].astype(np.int16)
    return Trace(
        expert_ids=ids, gate_weights=rng.random(ids.shape).astype(np.float32) if weights else None,
        step=np.zeros(tokens, int), rank=np.zeros(tokens, int), seq=np.arange(tokens) // 4, pos=np.arange(tokens) % 4,
        phase=np.zeros(tokens, np.uint8), n_experts=experts,
    )


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 1e6])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_drawn_tokens_pick_distinct_experts_with_weights_that_fall_and_sum_to_one(alpha, top_k):
    ids, weights = dirichlet(np.random.default_rng(1), 500, n_experts=8, top_k=top_k, alpha=alpha)
    assert ids.shape == weights.shape == (500, top_k)
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    assert ids.max() < 8
    assert all(len(set(row)) == top_k for row in ids)
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_a_number_above_zero(alpha):
    with pytest.raises(InputError, match=rf"trace\.alpha={alpha}"):
        dirichlet(np.random.default_rng(0), 1, n_experts=4, top_k=1, alpha=alpha)


def test_balanced_deals_experts_like_cards():
    ids, weights = balanced(np.array([0, 1, 2, 3]), n_experts=6, top_k=3)
    assert ids.tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert (weights == 1 / 3).all()


def test_balanced_loads_every_expert_alike_from_every_gpu():
    w = from_balanced(MODEL, 3, 12)
    ids = w.choose(0).ids
    for gpu in range(3):
        assert (np.bincount(ids[w.source == gpu].ravel(), minlength=8) == 12 * 2 / 8).all()


def test_a_drawn_layer_is_the_same_whatever_was_drawn_before_it():
    early, late = from_sampler(MODEL, 2, 16, seed=5), from_sampler(MODEL, 2, 16, seed=5)
    for layer in range(3):
        late.choose(layer)
    assert (early.choose(3).ids == late.choose(3).ids).all()
    assert (early.choose(3).weights == late.choose(3).weights).all()


def test_layers_and_seeds_differ():
    w, other = from_sampler(MODEL, 2, 16, seed=5), from_sampler(MODEL, 2, 16, seed=6)
    assert (w.choose(0).ids != w.choose(1).ids).any()
    assert (w.choose(0).ids != other.choose(0).ids).any()


def test_made_up_tokens_stand_in_sequences_of_the_length_asked_for():
    w = from_sampler(MODEL, 2, 5, seed=0, sequence=3)
    assert w.source.tolist() == [0] * 5 + [1] * 5
    assert w.index.tolist() == [0, 1, 2, 3, 4] * 2
    assert w.context.tolist() == [1, 2, 3, 1, 2] * 2


def test_a_recorded_token_keeps_its_experts_and_weights_wherever_it_starts():
    trace = recorded()
    w = from_trace(trace, MODEL, 3, 4)
    assert (w.choose(1).ids == trace.expert_ids[:, 1]).all()
    assert (w.choose(1).weights == trace.gate_weights[:, 1]).all()
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
    with pytest.raises(InputError, match=f"^trace.path=x: {said}; model toy has 8 experts, top-2$"):
        from_trace(recorded(**shape), MODEL, 3, 4, name="trace.path=x")


def test_less_than_one_token_is_refused():
    for make in (lambda n: from_balanced(MODEL, 2, n), lambda n: from_sampler(MODEL, 2, n, seed=0)):
        with pytest.raises(InputError, match=r"workload\.tokens_per_gpu=0"):
            make(0)
    with pytest.raises(InputError, match=r"trace\.sequence=0"):
        from_balanced(MODEL, 2, 4, sequence=0)
