"""The roofline: its two sides in closed form, the kink between them, and what must not cost anything."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim.engine import compute
from clustersim.gpuspec import GpuSpec
from clustersim.model import Attention, Model
from clustersim.parts import Dense, Latent, Mamba, Mamba2, Retention
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


def part_seconds(part, gpu, tokens, context_sum=None, *, model=MODEL, decode=False, cached=None, sequences=None):
    pairs = np.zeros(len(tokens)) if context_sum is None else context_sum
    return compute.part_seconds(
        part, model.hidden, model, gpu, tokens, pairs, decode=decode, cached=pairs if cached is None else cached,
        sequences=tokens if sequences is None else sequences,
    )  # fmt: skip


def test_shared_and_dense_in_closed_form():
    tokens = np.array([0, 1, 1000])
    dense = MODEL.layers[0][1]
    for seconds, params, width in (
        (lambda gpu: compute.shared_seconds(MODEL, gpu, tokens), EXPERT, 0.5),
        (lambda gpu: part_seconds(dense, gpu, tokens), 3 * 64 * 128, 2.0),
        (lambda gpu: part_seconds(dataclasses.replace(dense, matrices=2), gpu, tokens), 2 * 64 * 128, 2.0),
    ):
        np.testing.assert_allclose(seconds(FAST_MEMORY), 2 * params * tokens / 2e12, rtol=1e-12)
        nbytes = params * width * np.array([0, 1, 1]) + tokens * 2 * 64 * 2.0
        np.testing.assert_allclose(seconds(FAST_CHIP), nbytes / 1e9, rtol=1e-12)


def test_attention_in_closed_form():
    tokens, context_sum = np.array([0, 1, 1000]), np.array([0.0, 3.0, 5000.0])
    attention = MODEL.layers[0][0]
    seconds = part_seconds(attention, FAST_MEMORY, tokens, context_sum)
    np.testing.assert_allclose(seconds, 2 * ATTENTION * tokens / 2e12 + 4 * 4 * 16 * context_sum / 1e12, rtol=1e-12)
    seconds = part_seconds(attention, FAST_CHIP, tokens, context_sum)
    nbytes = ATTENTION * 2.0 * np.array([0, 1, 1]) + tokens * (2 * 64 + 2 * 2 * 16) * 2.0
    np.testing.assert_allclose(seconds, nbytes / 1e9, rtol=1e-12)


def test_decoding_reads_what_each_sequence_looks_at_once_however_many_tokens_it_verifies():
    """3 tokens of each of 2 sequences that hold 100 tokens: keys and values of 200 tokens are read, not of 600."""
    attention, tokens = MODEL.layers[1][0], np.array([6])
    pairs, cached = np.array([600.0]), np.array([200.0])
    seconds = part_seconds(attention, FAST_CHIP, tokens, pairs, decode=True, cached=cached)
    written = ATTENTION * 2.0 + 6 * (2 * 64 + 2 * 2 * 16) * 2.0
    np.testing.assert_allclose(seconds, (written + 200 * 2 * 2 * 16 * 2.0) / 1e9, rtol=1e-12)
    halved = dataclasses.replace(MODEL, cache_bytes=1.0)
    less = part_seconds(attention, FAST_CHIP, tokens, pairs, decode=True, cached=cached, model=halved)
    np.testing.assert_allclose(seconds - less, (200 + 6) * 2 * 2 * 16 / 1e9, rtol=1e-9)


@pytest.mark.parametrize(
    ("part", "state"),
    [
        (Mamba(inner=128, state=16, conv=4, dt_rank=4), 128 * (16 + 4)),
        (Mamba2(inner=128, state=16, conv=4, heads=2), 128 * 16 + (128 + 32) * 4),
        (Retention(heads=4, key_dim=64, value_dim=128), 64 * 128 / 4),
    ],
)
def test_states_are_read_and_written_whatever_the_context(part, state):
    tokens = np.array([0, 5])
    one, other = (part_seconds(part, FAST_CHIP, tokens, np.array([0.0, c]), decode=True) for c in (5.0, 5e6))
    np.testing.assert_array_equal(one, other)
    prefill = part_seconds(part, FAST_CHIP, tokens)
    np.testing.assert_allclose(one - prefill, [0, 5 * 2 * state * 2.0 / 1e9], rtol=1e-9)
    params = part.params(64)
    np.testing.assert_allclose(prefill[1], (params * 2.0 + 5 * 2 * 64 * 2.0) / 1e9, rtol=1e-12)
    flops = 2 * params * 5 / 2e12 + part.mixing_flops(1, False) * 5 / 1e12
    np.testing.assert_allclose(part_seconds(part, FAST_MEMORY, tokens)[1], flops, rtol=1e-12)


def test_mixture_of_depths_passes_its_share_of_the_tokens():
    """60 of 480 tokens: their FLOPs, and the weights of the FFN and of its router, once."""
    part, tokens = Dense(size=128, share=0.125), np.array([480])
    np.testing.assert_allclose(part_seconds(part, FAST_MEMORY, tokens), 2 * (3 * 64 * 128 + 64) * 60 / 2e12, rtol=1e-12)


def test_context_is_causal_and_capped_by_the_window_token_by_token():
    """Two sequences of 12 on GPU 0, one of 5 on GPU 2: capping the sum instead of each token would be wrong."""
    context = np.concatenate([np.arange(1, 13), np.arange(1, 13), np.arange(1, 6)])
    source = np.repeat([0, 0, 2], [12, 12, 5])
    (windowed, _), (whole, _), *_ = MODEL.layers
    np.testing.assert_array_equal(compute.context_sums(whole, context, source, 4), [2 * 78, 0, 15, 0])
    np.testing.assert_array_equal(compute.context_sums(windowed, context, source, 4), [2 * (36 + 4 * 8), 0, 15, 0])


def test_mla_scores_in_the_expanded_form_in_prefill_and_on_the_latents_in_decode():
    """DeepSeek-V3: 128 heads of 192 for query · key and 128 for weight · value; absorbed 576 and 512."""
    mla = Latent(heads=128, q_rank=1536, kv_rank=512, nope_dim=128, rope_dim=64, value_dim=128)
    for decode, width in ((False, 192 + 128), (True, 576 + 512)):
        none, some = (part_seconds(mla, FAST_MEMORY, np.array([1]), np.array([c]), decode=decode) for c in (0.0, 1000.0))
        np.testing.assert_allclose(some - none, 2 * 128 * width * 1000 / 1e12, rtol=1e-9)


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=4), st.integers(0, 3))
def test_time_is_the_later_of_the_two_limits_and_grows_with_tokens(tokens, slot):
    counts, where = np.array(tokens), np.array([0, 0, 1, 2])
    both = compute.expert_seconds(MODEL, GPU, counts, where, 3)
    sides = [compute.expert_seconds(MODEL, side, counts, where, 3) for side in (FAST_MEMORY, FAST_CHIP)]
    np.testing.assert_array_equal(both, np.maximum(*sides))
    counts[slot] += 1
    assert (compute.expert_seconds(MODEL, GPU, counts, where, 3) >= both).all()


def test_a_model_without_shared_experts_spends_nothing_on_them():
    plain = dataclasses.replace(MODEL, n_shared_experts=0, shared_ffn=0)
    assert compute.shared_seconds(plain, GPU, np.array([5, 6])).tolist() == [0, 0]


def test_a_bf16_model_gets_the_bf16_rate():
    slow = dataclasses.replace(MODEL, gemm="bf16")
    args = np.array([10]), np.array([0]), 1
    ratio = compute.expert_seconds(slow, FAST_MEMORY, *args) / compute.expert_seconds(MODEL, FAST_MEMORY, *args)
    np.testing.assert_allclose(ratio, 2.0)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_gpu_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match=r"gpu\.bf16 = .*above 0"):
        gpu(bf16_flops=value)
