"""How many places an expert has: the formulas on their own. Golden values are in test_golden_capacity."""

import numpy as np
import pytest

from clustersim.types import InputError
from clustersim.workload import capacity_sizes
from clustersim.workload.capacity_sizes import (
    deepspeed,
    fastmoe_switch,
    megatron,
    mesh_tensorflow,
    moe_plus_plus,
    moe_plus_plus_shares,
    tutel,
    vmoe,
)


def places(size, tokens, top_k, n_units, factor, largest=0, **options):
    return size(np.atleast_1d(tokens), top_k, n_units, factor, largest, **options).tolist()


def test_capacity_is_counted_per_pool_and_rounded_up():
    # 10·4/32 = 1.25 and 16·4/32 = 2 choices per expert on average
    assert places(megatron, [10, 16, 0], 4, 32, 1.0) == [2, 2, 0]
    assert places(megatron, [10, 16, 0], 4, 32, 2.0) == [3, 4, 0]


@pytest.mark.parametrize(("tokens", "factor", "expected"), [(10, 1.1, 11), (100, 1.1, 110), (50, 1.4, 70), (1000, 0.7, 700)])
def test_a_product_that_is_whole_is_not_rounded_away_by_float_error(tokens, factor, expected):
    """In floats 10 · 1.1 is above 11 and 100 · 0.57 below 57."""
    assert places(megatron, tokens, 1, 1, factor) == [expected]
    assert places(mesh_tensorflow, 100, 1, 1, 0.57) == [57]


@pytest.mark.parametrize("factor", [0, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", sorted(set(capacity_sizes.__all__) - {"tutel"}))
def test_a_factor_that_is_no_positive_number_is_refused(name, factor):
    with pytest.raises(InputError, match=rf"capacity\.factor={factor}: must be a number above 0"):
        places(getattr(capacity_sizes, name), 8, 2, 4, factor)


@pytest.mark.parametrize("name", capacity_sizes.__all__)
def test_a_larger_factor_never_gives_fewer_places(name):
    size = getattr(capacity_sizes, name)
    tokens = np.array([9, 64, 100, 384, 4096])
    given = np.array([size(tokens, 2, 32, factor, 500) for factor in (0.7, 1.0, 1.1, 1.25, 2.0, 4.0)])
    assert given.dtype == np.int64
    assert (np.diff(given, axis=0) >= 0).all()
    assert (given >= 0).all()


def test_the_batch_must_hold_deepspeeds_least_capacity_with_top_1_only():
    assert places(deepspeed, [8, 9], 1, 64, 1.0) == [8, 8]
    assert places(deepspeed, [4, 9], 2, 64, 1.0) == [8, 8]
    with pytest.raises(InputError, match=r"capacity\.min_capacity=8: .* and one has 7"):
        places(deepspeed, [7, 9], 1, 64, 1.0)
    assert places(deepspeed, [7, 9], 1, 64, 1.0, min_capacity=0) == [1, 1]


def test_tutel_takes_the_largest_load_at_factor_0_and_caps_it_below():
    assert places(tutel, [384, 100], 2, 32, 0.0, largest=77) == [77, 77]
    assert places(tutel, [384, 100], 2, 32, -1.0, largest=77) == [24, 8]            # 2 · 12, 2 · 4
    assert places(tutel, [384, 100], 2, 32, -9.0, largest=77, alignment=16) == [80, 80]


def test_vmoe_refuses_a_capacity_of_nothing():
    with pytest.raises(InputError, match=r"capacity\.factor=0\.01: leaves an expert no place"):
        places(vmoe, 10, 1, 64, 0.01, rounding="round")
    with pytest.raises(InputError, match=r"capacity\.rounding=floor: must be ceil or round"):
        places(vmoe, 10, 1, 64, 1.0, rounding="floor")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("tutel", "alignment", 0), ("vmoe", "multiple", 0), ("megatron_rank", "multiple", -4), ("deepspeed", "min_capacity", -1),
        ("mesh_tensorflow", "min_capacity", -1), ("flaxformer", "min_capacity", -1), ("moe_plus_plus", "zero_experts", -1),
        ("moe_plus_plus", "tau", 0.0),
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named(name, option, value):
    with pytest.raises(InputError, match=rf"capacity\.{option}={value}: must be"):
        places(getattr(capacity_sizes, name), 64, 2, 4, 1.0, **{option: value})


def test_with_equal_batches_fastmoe_counts_all_tokens_over_all_experts_as_each_worker_counts_its_own():
    """ceil(1.2 · 100 / 8) for a worker of 100 tokens and 8 experts; 4 such workers give the same over all."""
    assert places(fastmoe_switch, 100, 1, 8, 1.2) == places(fastmoe_switch, 400, 1, 32, 1.2) == [15]


def test_ffn_experts_have_tau_times_the_places_of_zero_computation_experts():
    ffn, zero = moe_plus_plus_shares(2, 8, 4, 1.1, 0.75)
    assert ffn / zero == pytest.approx(0.75)
    assert 8 * ffn + 4 * zero == pytest.approx(1.1 * 2), "all of them together: factor times the choices of a token"
    assert places(moe_plus_plus, [1024, 512], 2, 8, 1.1) == [169, 85]
    assert places(moe_plus_plus, [1024], 2, 8, 1.0, zero_experts=0) == [256]        # the plain mean
