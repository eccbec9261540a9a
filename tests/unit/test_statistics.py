"""Trace statistics against cases that can be worked out by hand."""

import math

import numpy as np
import pytest

from clustersim.types import Trace
from clustersim.workload.statistics import (
    chance_overlap,
    gini,
    lift_p99,
    load_cv,
    membership,
    next_layer_recall,
    normalised_entropy,
    overlap,
    pair_lift,
    rows_of,
    sequence_spread,
)


def trace_of(ids, seq=None, n_experts=4):
    ids = np.asarray(ids, np.int16)
    tokens = len(ids)
    seq = np.zeros(tokens, int) if seq is None else np.asarray(seq)
    pos = np.array([(seq[:i] == seq[i]).sum() for i in range(tokens)])
    zeros = np.zeros(tokens, int)
    return Trace(expert_ids=ids, gate_weights=None, step=zeros, rank=zeros, seq=seq, pos=pos, phase=zeros.astype(np.uint8),
                 n_experts=n_experts, domain={0: "a", 1: "b"})


def test_no_expert_is_a_member_of_nothing():
    assert membership(np.array([[[2, -1]]]), 3).tolist() == [[[False, False, True]]]


def test_load_cv_is_0_when_even_and_the_root_of_experts_minus_1_when_one_takes_all():
    """One of E loads is T, the rest 0: mean T/E, variance T^2 (E - 1)/E^2."""
    assert load_cv(np.arange(4)[:, None, None], 4).tolist() == [0]
    assert load_cv(np.zeros((5, 1, 1), int), 4)[0] == pytest.approx(math.sqrt(3))


def test_overlap_compares_within_a_sequence_only():
    """Experts 0, 1, 0 in sequence 0, then 0 in sequence 1: at lag 1 nothing is shared, at lag 2 the one pair shares all."""
    trace = trace_of([[[0]], [[1]], [[0]], [[0]]], seq=[0, 0, 0, 1])
    assert (overlap(trace, 1).tolist(), overlap(trace, 2).tolist()) == ([0], [1])
    assert np.isnan(overlap(trace, 3)).all()


def test_overlap_of_independent_uniform_choices_is_top_k_over_experts():
    """p_e = k/E for all e, so sum p^2 / sum p = k/E; the sample of n pairs of k deviates by about sqrt(p(1-p)/(n k))."""
    rng = np.random.default_rng(0)
    trace = trace_of(rng.random((4000, 1, 8)).argsort(2)[:, :, :2], n_experts=8)
    assert chance_overlap(trace) == pytest.approx(0.25, abs=1e-3)
    assert overlap(trace, 1) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 8000))


def test_a_layer_that_repeats_the_one_before_is_recalled_and_an_independent_one_is_not():
    """Repeated: recall 1. Independent and uniform over 8, top-1: any ranking finds 1/8; 1200 tested tokens."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 8, (4000, 1, 1))
    seq = np.arange(4000) // 40
    repeated = trace_of(np.concatenate([first, first], 1), seq=seq, n_experts=8)
    independent = trace_of(np.concatenate([first, rng.integers(0, 8, first.shape)], 1), seq=seq, n_experts=8)
    assert next_layer_recall(repeated)[0] == 1
    tolerance = 4 * math.sqrt(1 / 8 * 7 / 8 / 1200)
    assert next_layer_recall(independent) == pytest.approx((1 / 8, 1 / 8), abs=tolerance)


def test_entropy_and_gini_of_loads_that_can_be_worked_out():
    """Even: 1 and 0; one expert of four takes all: 0 and 3/4; loads 1, 1, 2: entropy 1.5 bits of log2(3), and the mean
    difference of two loads 4/9 over twice the mean 4/3."""
    assert normalised_entropy(np.array([[5, 5], [3, 3]])).tolist() == [1, 1]
    assert (normalised_entropy(np.array([7, 0, 0, 0])), gini(np.array([7, 0, 0, 0]))) == (0, 0.75)
    assert gini(np.array([2, 2, 2])) == 0
    assert normalised_entropy(np.array([1, 1, 2])) == pytest.approx(1.5 / math.log2(3))
    assert gini(np.array([[1, 1, 2], [2, 1, 1]])) == pytest.approx([1 / 6, 1 / 6])


def test_lift_of_experts_that_always_go_together_and_of_those_that_never_do():
    """Half of 400 tokens take {0, 1}, half {2, 3}: each expert serves half, 100 joint tokens are expected, 200 or 0 seen."""
    trace = trace_of([[[0, 1]], [[2, 3]]] * 200)
    lift, expected = pair_lift(trace.expert_ids, 4)
    assert (expected[0, 0, 1], expected[0, 0, 2]) == (100, 100)
    assert (lift[0, 0, 1], lift[0, 2, 3], lift[0, 0, 2]) == (2, 2, 0)
    assert lift_p99(lift, expected).tolist() == [2]
    assert np.isnan(lift_p99(lift, expected, np.full_like(expected, 49))).all(), "expected often enough in all of them, or out"


def test_an_expert_that_is_missing_belongs_to_no_pair():
    lift, expected = pair_lift(np.array([[[0, -1]], [[1, -1]]]), 2)
    assert lift[0, 0, 1] == 0
    assert expected[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_sequences_that_use_other_experts_are_far_from_the_whole_and_long_ones_count_for_more():
    """Two sequences of 3 and 1 tokens, each with its own expert: loads 3/4 and 1/4; the long one would have to move 1/4 of its
    choices, the short one 3/4: (3 x 1/4 + 1 x 3/4) / 4 = 3/8. Sequences alike are at no distance."""
    assert sequence_spread(trace_of([[[0]], [[0]], [[0]], [[1]]], seq=[0, 0, 0, 1])).tolist() == [3 / 8]
    assert sequence_spread(trace_of([[[0]], [[1]], [[0]], [[1]]], seq=[0, 0, 1, 1])).tolist() == [0]


def test_recall_may_look_further_ahead():
    """Layer 2 repeats layer 0, layer 1 is noise of its own."""
    rng = np.random.default_rng(0)
    first, noise = rng.integers(0, 8, (4000, 1, 1)), rng.integers(0, 8, (4000, 1, 1))
    trace = trace_of(np.concatenate([first, noise, first], 1), seq=np.arange(4000) // 40, n_experts=8)
    assert next_layer_recall(trace, ahead=2)[0].tolist() == [1]
    assert next_layer_recall(trace)[0].max() < 0.2
    assert next_layer_recall(trace, ahead=3)[0].size == 0


def test_rows_of_a_domain_are_those_of_its_sequences():
    assert rows_of(trace_of([[[0]]] * 3, seq=[1, 0, 1]), "b").tolist() == [0, 2]
