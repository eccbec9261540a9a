"""The kernels of a block: which they are, what the passes between GEMMs move, and that none beats the roofline."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim import load_cluster
from clustersim.config import compose
from clustersim.engine import blocks, timing
from clustersim.engine.compute import context_sums
from clustersim.engine.gemm import grouped_seconds
from clustersim.matrices import gemms
from clustersim.parts import Moe
from clustersim.types import InputError

H100 = load_cluster("h100_sxm").gpu
MODELS = (
    "deepseek_v3", "gpt_oss_20b", "mixtral_8x7b", "qwen3_235b_a22b", "deepseek_v2_lite", "jamba_1_5_large", "mamba_2_2_7b",
    "retnet_6_7b", "switch_c", "llama_4_maverick",
)  # fmt: skip
DEEPSEEK = timing.kernels(compose(["model=deepseek_v3"]).model, H100)
FREE = timing.kernels_of(dataclasses.replace(H100, memory_latency=1e-30), "deepgemm_2025_07", "gemm", 0)


@cache
def model(name):
    return compose([f"model={name}"]).model


def test_the_projections_of_deepseek_v3_are_the_gemms_that_deepgemm_is_measured_with():
    """q_a and kv_a read the same input and are one: 1536 + 512 + 64 columns. Queries 128 x 192, keys and values 128 x 256."""
    first = {name: gemms(model(name).layers[0][0], model(name).hidden) for name in MODELS}
    assert first["deepseek_v3"] == ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384))
    assert first["deepseek_v2_lite"] == ((16 * 192 + 576, 2048), (16 * 256, 512), (2048, 16 * 128))
    assert first["gpt_oss_20b"] == (((64 + 16) * 64, 2880), (2880, 4096))


def passes(layout, precision, through, buffered=None, rows=(3, 0, 5)):
    """Seconds beyond the two GEMMs of experts of 256 x 512."""
    rows, owner = np.array(rows), np.zeros(3, int)
    whole = blocks.expert_kernels_seconds(
        rows, owner, 1, FREE, precision, hidden=512, ffn=256, layout=layout, through=np.array([through]),
        buffered=None if buffered is None else np.array([buffered]),
    )  # fmt: skip
    gemms = sum(
        grouped_seconds(rows, owner, 1, n, k, layout=layout, precision=precision, kernels=FREE) + 0.5e-6
        for n, k in ((512, 512), (512, 256))
    )
    return (whole - gemms)[0]


def test_prefill_scatters_activates_quantises_and_gathers():
    """8 rows of 6 tokens. FP8: 1 + 4/128 B a value; 2 passes turn the scales (4 B per 128 values, read and written)."""
    narrow = 1 + 4 / 128
    scatter, silu, quantise = (6 + 8) * 512 * narrow, 8 * 256 * 6.0, 8 * 256 * (2 + narrow)
    gather, turned = (8 + 6) * 512 * 2.0, 8 * (512 + 256) / 128 * 8
    expected = 6 * 3e-6 + (scatter + silu + quantise + gather + turned) / 2.68e12
    assert passes("contiguous", blocks.PRECISIONS["fp8"], 6.0) == pytest.approx(expected, rel=1e-9)
    bf16 = 3 * 3e-6 + ((6 + 8) * 512 * 2 + silu + gather) / 2.68e12
    assert passes("contiguous", blocks.PRECISIONS["bf16"], 6.0) == pytest.approx(bf16, rel=1e-9)


def test_decode_activates_and_quantises_at_once_and_turns_the_scales_of_the_whole_buffer():
    narrow = 1 + 4 / 128
    expected = 3 * 3e-6 + (8 * 256 * (4 + narrow) + 1000 * (512 + 256) / 128 * 8) / 2.68e12
    assert passes("masked", blocks.PRECISIONS["fp8"], 0.0, 1000.0) == pytest.approx(expected, rel=1e-9)


def test_a_rank_that_nothing_reaches_takes_no_time_and_one_that_only_passes_tokens_on_does():
    assert passes("contiguous", blocks.PRECISIONS["bf16"], 0.0, rows=(0, 0, 0)) == pytest.approx(-2 * 0.5e-6)
    assert passes("contiguous", blocks.PRECISIONS["bf16"], 6.0, rows=(0, 0, 0)) > 8e-6


def own_parts(m, tokens, context):
    parts = dict.fromkeys(part for layer in m.layers for part in layer if not isinstance(part, Moe))
    return [(part, m.hidden, tokens, context) for part in parts]


@pytest.mark.parametrize("topology", ["h100_sxm", "a100_sxm", "gb200_nvl72"])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_never_beat_the_roofline(name, topology):
    m, gpu = model(name), load_cluster(topology).gpu
    bound, real = timing.roofline(m, gpu), timing.kernels(m, gpu)
    rng = np.random.default_rng(3)
    for tokens in (np.array([0, 1, 7, 64, 500, 4096]), rng.integers(0, 9000, 6)):
        slots = rng.multinomial(int(tokens.sum()), rng.dirichlet(np.ones(24)))
        owner = np.repeat(np.arange(6), 4)
        context = context_sums(m.layers[0][0], np.arange(tokens.sum()) % 512 + 1, np.repeat(np.arange(6), tokens), 6)
        pairs = [
            *([(real.experts(slots, owner, 6), bound.experts(slots, owner, 6))] if m.n_experts else []),
            (real.shared(tokens), bound.shared(tokens)),
            *((real.part_seconds(*own), bound.part_seconds(*own)) for own in own_parts(m, tokens, context)),
            (real.matrix(m.vocab, m.hidden, tokens), bound.matrix(m.vocab, m.hidden, tokens)),
        ]
        for kernel, roof in pairs:
            assert (kernel >= roof * (1 - 1e-9)).all()
            assert ((kernel > 0) == (roof > 0)).all(), "what takes time takes time in both"


@given(tokens=st.lists(st.integers(0, 3000), min_size=6, max_size=6), slot=st.integers(0, 5), more=st.integers(1, 500))
def test_experts_never_get_faster_with_more_tokens(tokens, slot, more):
    counts, owner = np.array(tokens), np.array([0, 0, 0, 1, 1, 1])
    before = DEEPSEEK.experts(counts, owner, 2)
    counts[slot] += more
    after = DEEPSEEK.experts(counts, owner, 2)
    assert (after >= before * (1 - 1e-12)).all()
    assert after[1 - owner[slot]] == before[1 - owner[slot]], "GPUs compute apart"


def test_decode_streams_weights():
    """64 experts of DeepSeek-V3 with a token each: 64 x 44.05 MB at 2.68 TB/s, all else below 3 %."""
    fp8 = blocks.PRECISIONS["fp8"]
    real = timing.kernels_of(H100, "deepgemm_2025_07", "gemm", 0)
    seconds = blocks.expert_kernels_seconds(
        np.ones(64, int), np.zeros(64, int), 1, real, fp8, hidden=7168, ffn=2048, layout="masked", through=np.zeros(1)
    )[0]
    streamed = 64 * 3 * 7168 * 2048 * fp8.weight_bytes / 2.68e12
    assert streamed < seconds < 1.03 * streamed


def test_sms_that_communication_takes_slow_arithmetic():
    """110 of 132 SMs: a fifth more time, up to the last wave and the passes. (A single token may get another tile, and gain.)"""
    m = model("mixtral_8x7b")
    slow, fast = (timing.kernels(m, H100, sms_taken=taken).experts(np.array([8192]), np.array([0]), 1) for taken in (22, 0))
    assert 1.1 * fast < slow < 1.25 * fast


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("sms_taken", 132, "compute.sms_taken=132: must leave some of the 132 SMs"), ("sms_taken", -1, "compute.sms_taken=-1"),
        ("tiles", "deepgem", "compute.tiles=deepgem: there is no such tiles"), ("constants", "gem", "did you mean gemm?"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(option, value, said):
    with pytest.raises(InputError) as refused:
        timing.kernels(model("mixtral_8x7b"), H100, **{option: value})
    assert said in str(refused.value)


@pytest.mark.parametrize(("phase", "batch", "tokens", "us"), [
    ("decode", 64, 1, 118.5), ("decode", 128, 1, 137.9), ("decode", 256, 1, 194.3), ("decode", 64, 2048, 181.2),
    ("decode", 64, 4096, 238.1), ("decode", 128, 2048, 266.0), ("decode", 256, 1024, 329.6),
    ("prefill", 8, 1024, 3503), ("prefill", 16, 1024, 6990), ("prefill", 8, 2048, 7785), ("prefill", 4, 4096, 9717),
])  # fmt: skip
def test_latent_attention_takes_what_sglang_measures_on_h100(phase, batch, tokens, us):
    """Projections, attention (FlashAttention 3) and output of a layer of DeepSeek-V3 on one GPU, nothing beside it.

    github:ai-dynamo/aiconfigurator, package aiconfigurator-core 0.12.0: systems/data/h100_sxm/mla/sglang/0.5.10, tables
    wideep_generation_mla_perf and wideep_context_mla_perf, 128 heads, fp8_block. Nothing here was fitted to them.
    """
    part = model("deepseek_v3").layers[5][0]
    rows = batch * (tokens if phase == "prefill" else 1)
    each = tokens * (tokens + 1) / 2 if phase == "prefill" else tokens + 1
    seconds = DEEPSEEK.part_seconds(part, 7168, np.array([rows]), np.array([batch * each]), phase=phase)
    assert seconds[0] == pytest.approx(us * 1e-6, rel=0.1)


def test_gemms_that_spare_sms_are_those_of_fewer_and_attention_has_all():
    spare = timing.kernels(model("deepseek_v3"), H100, sms_spared=24)
    fewer = timing.kernels(model("deepseek_v3"), H100, sms_taken=24)
    rows, pairs = np.array([4096]), np.array([4096 * 4097 / 2])
    part, ffn = model("deepseek_v3").layers[5][0], model("deepseek_v3").layers[0][1]
    assert spare.part_seconds(ffn, 7168, rows, pairs) == fewer.part_seconds(ffn, 7168, rows, pairs)
    none = np.zeros(1)
    for timed, share in ((spare, 1.0), (fewer, 108 / 132)):
        scores = timed.part_seconds(part, 7168, rows, pairs) - timed.part_seconds(part, 7168, rows, none)
        assert scores[0] == pytest.approx(part.mixing_flops(1.0, False) * pairs[0] / (H100.bf16_flops * 0.667 * share), rel=1e-6)
