"""How much room an expert has for each source GPU, and who keeps it."""

import numpy as np
import pytest

from clustersim.types import InputError
from clustersim.workload.capacity import capacity_per_source, limit, position, prob

ONE_GPU = np.zeros(4, int)


def test_capacity_is_counted_per_source_gpu_and_rounded_up():
    # 10·4/32 = 1.25 and 16·4/32 = 2 choices per expert on average
    assert capacity_per_source(np.array([10, 16, 0]), 4, 32, 1.0).tolist() == [2, 2, 0]
    assert capacity_per_source(np.array([10, 16, 0]), 4, 32, 2.0).tolist() == [3, 4, 0]


@pytest.mark.parametrize(("tokens", "factor", "expected"), [(10, 1.1, 11), (100, 1.1, 110), (50, 1.4, 70), (1000, 0.7, 700)])
def test_a_product_that_is_whole_is_not_rounded_up_by_float_error(tokens, factor, expected):
    assert capacity_per_source(np.array([tokens]), 1, 1, factor).tolist() == [expected]


@pytest.mark.parametrize("factor", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_positive_number_is_refused(factor):
    with pytest.raises(InputError, match=rf"capacity\.factor={factor}: must be a number above 0"):
        capacity_per_source(np.array([8]), 2, 4, factor)


def test_position_keeps_the_earliest_tokens():
    asked = np.array([[0, 1], [0, 2], [0, 1], [0, 3]])
    kept = position(asked, None, ONE_GPU, 4, np.array([2]))
    assert kept.tolist() == [[0, 1], [0, 2], [-1, 1], [-1, 3]]


def test_prob_keeps_the_largest_weights_and_of_equal_ones_the_earlier_token():
    asked = np.array([[0], [0], [0], [0]])
    assert prob(asked, np.array([[0.1], [0.5], [0.2], [0.5]]), ONE_GPU, 1, np.array([2])).ravel().tolist() == [-1, 0, -1, 0]
    assert prob(asked, np.full((4, 1), 0.25), ONE_GPU, 1, np.array([3])).ravel().tolist() == [0, 0, 0, -1]


def test_prob_tells_weights_apart_that_differ_in_the_last_bit_and_orders_signs():
    one_up = np.nextafter(0.5, 1)
    asked = np.zeros((4, 1), int)
    assert prob(asked, np.array([[0.5], [one_up], [0.5], [0.4]]), ONE_GPU, 1, np.array([1])).ravel().tolist() == [-1, 0, -1, -1]
    assert prob(asked, np.array([[-2.0], [-1.0], [-0.0], [0.0]]), ONE_GPU, 1, np.array([2])).ravel().tolist() == [-1, -1, 0, 0]


def test_every_source_gpu_has_room_of_its_own():
    asked, source = np.array([[0], [0], [0], [0]]), np.array([0, 0, 1, 1])
    assert position(asked, None, source, 1, np.array([1, 2])).ravel().tolist() == [0, -1, 0, 0]


def test_tokens_need_not_be_ordered_by_source():
    asked, source = np.array([[0], [0], [0], [0]]), np.array([1, 0, 1, 0])
    assert position(asked, None, source, 1, np.array([1, 1])).ravel().tolist() == [0, 0, -1, -1]


def test_experts_are_told_apart_beyond_16_bits():
    asked = np.array([[69_999], [4_463], [69_999], [4_463]])        # alike in their last 16 bits
    assert position(asked, None, ONE_GPU, 70_000, np.array([1])).ravel().tolist() == [69_999, 4_463, -1, -1]


def test_a_choice_of_no_expert_takes_no_room_and_stays_none():
    asked = np.array([[-1, 0], [-1, 0], [-1, -1], [0, -1]])
    assert position(asked, None, ONE_GPU, 2, np.array([2])).tolist() == [[-1, 0], [-1, 0], [-1, -1], [-1, -1]]


def test_dropping_by_probability_needs_gate_weights_and_says_what_would_do():
    with pytest.raises(InputError, match=r"capacity\.drop=prob: the trace has no gate weights.*use capacity\.drop=position"):
        prob(np.array([[0]]), None, np.array([0]), 1, np.array([1]))


def test_no_factor_means_nobody_is_dropped():
    asked = np.array([[0, 1], [0, 1]])
    assigned, capacity = limit(position, asked, None, np.zeros(2, int), n_gpus=1, n_experts=2, factor=None)
    assert capacity is None
    assert (assigned == asked).all()


def test_a_factor_becomes_a_capacity_per_gpu_and_the_policy_applies_it():
    asked = np.array([[0], [0], [0], [0]])
    assigned, capacity = limit(position, asked, None, np.array([0, 0, 0, 1]), n_gpus=2, n_experts=2, factor=1.0)
    assert capacity.tolist() == [2, 1]      # 3/2 rounded up, 1/2 rounded up
    assert assigned.ravel().tolist() == [0, 0, -1, 0]
