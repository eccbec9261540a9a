"""The roofline: its two sides in closed form, the kink between them, and what must not cost anything."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim.engine import compute
from clustersim.gpuspec import GpuSpec
from clustersim.model import Attention, Model
from clustersim.types import InputError

GPU = GpuSpec(name="round numbers", bf16_flops=1e12, fp8_flops=2e12, memory=80e9, memory_bandwidth=1e9)
MODEL = Model(
    name="small", n_layers=4, n_dense_layers=1, n_experts=4, top_k=2, n_shared_experts=1, hidden=64, expert_ffn=32,
    shared_ffn=32, dense_ffn=128, vocab=100, dispatch_bytes=1.0, combine_bytes=2.0, expert_weight_bytes=0.5, gemm="fp8",
    attention=Attention(kind="gqa", heads=4, kv_heads=2, head_dim=16, sliding_window=8, full_every=2),
)  # fmt: skip
EXPERT = 3 * 64 * 32
ATTENTION = 64 * 16 * (4 + 4 + 2 + 2)


def gpu(**changes):
    return dataclasses.replace(GPU, **changes)


FAST_MEMORY = gpu(memory_bandwidth=1e30)
FAST_CHIP = gpu(bf16_flops=1e30, fp8_flops=1e30)


def test_experts_limited_by_arithmetic_take_their_flops():
    seconds = compute.expert_seconds(MODEL, FAST_MEMORY, np.array([10, 0, 5, 7]), np.array([0, 0, 2, 2]), 4)
    np.testing.assert_allclose(seconds, 2 * EXPERT * np.array([10, 0, 12, 0]) / 2e12, rtol=1e-12)


def test_experts_limited_by_memory_read_the_weights_of_used_slots_and_move_activations():
    seconds = compute.expert_seconds(MODEL, FAST_CHIP, np.array([10, 0, 5, 7]), np.array([0, 0, 2, 2]), 4)
    nbytes = np.array([1, 0, 2, 0]) * EXPERT * 0.5 + np.array([10, 0, 12, 0]) * 64 * (1.0 + 2.0)
    np.testing.assert_allclose(seconds, nbytes / 1e9, rtol=1e-12)


def test_shared_and_dense_in_closed_form():
    tokens = np.array([0, 1, 1000])
    for seconds, params, width in (
        (compute.shared_seconds, EXPERT, 0.5),
        (compute.dense_seconds, 3 * 64 * 128, 2.0),
    ):
        np.testing.assert_allclose(seconds(MODEL, FAST_MEMORY, tokens), 2 * params * tokens / 2e12, rtol=1e-12)
        nbytes = params * width * np.array([0, 1, 1]) + tokens * 2 * 64 * 2.0
        np.testing.assert_allclose(seconds(MODEL, FAST_CHIP, tokens), nbytes / 1e9, rtol=1e-12)


def test_attention_in_closed_form_with_the_router_only_in_moe_layers():
    tokens, context_sum = np.array([0, 1, 1000]), np.array([0.0, 3.0, 5000.0])
    for layer, router in ((0, 0), (1, 64 * 4)):
        seconds = compute.attention_seconds(MODEL, FAST_MEMORY, layer, tokens, context_sum)
        expected = 2 * ATTENTION * tokens / 2e12 + (2 * router * tokens + 4 * 4 * 16 * context_sum) / 1e12
        np.testing.assert_allclose(seconds, expected, rtol=1e-12)
        seconds = compute.attention_seconds(MODEL, FAST_CHIP, layer, tokens, context_sum)
        nbytes = (ATTENTION + router) * 2.0 * np.array([0, 1, 1]) + tokens * (2 * 64 + 2 * 2 * 16) * 2.0
        np.testing.assert_allclose(seconds, nbytes / 1e9, rtol=1e-12)


def test_context_is_causal_and_capped_by_the_window_token_by_token():
    """Two sequences of 12 on GPU 0, one of 5 on GPU 2: capping the sum instead of each token would be wrong."""
    context = np.concatenate([np.arange(1, 13), np.arange(1, 13), np.arange(1, 6)])
    source = np.repeat([0, 0, 2], [12, 12, 5])
    np.testing.assert_array_equal(compute.context_sums(MODEL, 1, context, source, 4), [2 * 78, 0, 15, 0])
    np.testing.assert_array_equal(compute.context_sums(MODEL, 0, context, source, 4), [2 * (36 + 4 * 8), 0, 15, 0])


def test_mla_prefill_scores_in_the_expanded_form():
    """DeepSeek-V3: 128 heads of 192 for query · key and 128 for weight · value."""
    mla = Attention(
        kind="mla", heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    model = dataclasses.replace(MODEL, attention=mla)
    none, some = (compute.attention_seconds(model, FAST_MEMORY, 0, np.array([1]), np.array([c])) for c in (0.0, 1000.0))
    np.testing.assert_allclose(some - none, 2 * 128 * (192 + 128) * 1000 / 1e12, rtol=1e-9)


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=4), st.integers(0, 3))
def test_time_is_the_later_of_the_two_limits_and_grows_with_tokens(tokens, slot):
    counts, where = np.array(tokens), np.array([0, 0, 1, 2])
    both = compute.expert_seconds(MODEL, GPU, counts, where, 3)
    sides = [compute.expert_seconds(MODEL, side, counts, where, 3) for side in (FAST_MEMORY, FAST_CHIP)]
    np.testing.assert_array_equal(both, np.maximum(*sides))
    counts[slot] += 1
    assert (compute.expert_seconds(MODEL, GPU, counts, where, 3) >= both).all()


def test_a_model_without_shared_experts_or_dense_layers_spends_nothing_on_them():
    plain = dataclasses.replace(MODEL, n_dense_layers=0, dense_ffn=0, n_shared_experts=0, shared_ffn=0)
    assert compute.shared_seconds(plain, GPU, np.array([5, 6])).tolist() == [0, 0]
    assert compute.dense_seconds(plain, GPU, np.array([5, 6])).tolist() == [0, 0]


def test_a_bf16_model_gets_the_bf16_rate():
    slow = dataclasses.replace(MODEL, gemm="bf16")
    args = np.array([10]), np.array([0]), 1
    ratio = compute.expert_seconds(slow, FAST_MEMORY, *args) / compute.expert_seconds(MODEL, FAST_MEMORY, *args)
    np.testing.assert_allclose(ratio, 2.0)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_gpu_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match=r"gpu\.bf16 = .*above 0"):
        gpu(bf16_flops=value)
