"""Memory of a step: published accountings, published layouts that fit, and what is said of those that do not."""

import re
from dataclasses import replace

import pytest
import yaml

from clustersim.architecture import Architecture, Stack, describe
from clustersim.engine import pipelines
from clustersim.engine.activations import Keeping, kept_of_layer
from clustersim.engine.buffers import buffer_bytes
from clustersim.engine.memory import PARTS, Load, need, said
from clustersim.engine.stages import chunks_of, most_kept, ordered
from clustersim.parallel import Parallel
from clustersim.parts import KINDS, Attention, Dense, Mamba, Mamba2, Moe, Retention
from clustersim.places import group_folder
from clustersim.types import InputError

H100, GB, GIB = 80e9, 1e9, 2**30
FP8 = 1 + 4 / 128
TRAINED_AS_V3 = Keeping(recompute="deepseek_v3", linear=FP8)


def model(name):
    return describe(yaml.safe_load((group_folder("model") / f"{name}.yaml").read_text()))


def dense(layers, hidden, *, size, heads, kv_heads=None, vocab=1, matrices=3, dim=None):
    attention = Attention(heads=heads, kv_heads=kv_heads or heads, head_dim=dim or hidden // heads)
    return of_layers(((attention, Dense(size=size, matrices=matrices)),) * layers, hidden, vocab)


def of_layers(layers, hidden, vocab=1):
    return Architecture(
        name="made", core=Stack(hidden=hidden, layers=layers), vocab=vocab, tied_embeddings=False, positions=0, encoders={},
        retrieval=None, expert_dtype=2.0, dtype=2.0, status="",
    )  # fmt: skip


GPT_3, MT_NLG = (12288, 96, 2048), (20480, 128, 2048)        # hidden, heads, sequence: arXiv 2205.05198 table 3


def kept_of_gpt(shape, parallel, **keeping):
    h, heads, sequence = shape
    (layer,) = dense(1, h, size=4 * h, heads=heads, matrices=2).core.layers
    return kept_of_layer(layer, h, parallel, Keeping(flash=False, dropout=True, **keeping), sequence=sequence) / h


@pytest.mark.parametrize("shape", [GPT_3, MT_NLG])
@pytest.mark.parametrize("t", [1, 8])
def test_a_gpt_layer_keeps_what_table_2_of_the_megatron_paper_says(shape, t):
    # arXiv 2205.05198 table 2, bytes per token over h: scores are 5 a s / h of it, what tensor parallel splits is 24 of 34
    h, a, s = shape
    scores = 5 * a * s / h
    split = Parallel(gpus=t, tensor=t)
    replicated = Parallel(gpus=t, tensor=t, sequence_parallel=False)
    assert kept_of_gpt(shape, replicated) == pytest.approx(10 + 24 / t + scores / t)
    assert kept_of_gpt(shape, split) == pytest.approx(34 / t + scores / t)
    assert kept_of_gpt(shape, replicated, recompute="selective") == pytest.approx(10 + 24 / t)
    assert kept_of_gpt(shape, split, recompute="selective") == pytest.approx(34 / t)
    assert kept_of_gpt(shape, replicated, recompute="full") == pytest.approx(2)


@pytest.mark.parametrize(("shape", "saved"), [(GPT_3, 0.70), (MT_NLG, 0.65)])
def test_recomputing_scores_saves_what_the_megatron_paper_says(shape, saved):
    one = Parallel(gpus=1)
    assert 1 - kept_of_gpt(shape, one, recompute="selective") / kept_of_gpt(shape, one) == pytest.approx(saved, abs=0.01)


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_states_of_7_5_billion_parameters_on_64_gpus_are_those_of_the_zero_paper(zero, gigabytes):
    # arXiv 1910.02054 figure 1: FP16 weights and gradients, 12 bytes of optimiser
    arch = dense(48, 3600, size=14400, heads=36, matrices=2)
    memory = need(arch, Parallel(gpus=64, zero=zero), Load(phase="training", gradients=2.0))
    states = sum(memory.parts[part] for part in ("weights", "gradients", "optimiser"))
    assert states / arch.total_params * 7.5 == pytest.approx(gigabytes, abs=0.05)


def test_megatron_needs_18_bytes_per_parameter_and_6_and_12_over_d_with_its_distributed_optimiser():
    # github:NVIDIA/Megatron-LM issue 654: 2 for weights, 4 for gradients, 4 for main weights, 8 for the states of Adam
    arch = dense(4, 512, size=2048, heads=8)
    for zero, expected in ((0, 18), (1, 6 + 12 / 16)):
        parts = need(arch, Parallel(gpus=16, zero=zero), Load(phase="training")).parts
        states = sum(parts[part] for part in ("weights", "gradients", "optimiser"))
        assert states == pytest.approx(expected * arch.total_params)


@pytest.mark.parametrize("order", ["one_f_one_b", "zero_bubble", "dualpipe"])
@pytest.mark.parametrize("data", [1, 4])
def test_with_zero_every_state_is_there_once_whatever_the_order(order, data):
    """DualPipe has every chunk at either end of the pipeline, so that twice as many GPUs share its states."""
    arch = dense(8, 512, size=2048, heads=8)
    load = Load(phase="training", order=order, micro_batches=16)
    memory = need(arch, Parallel(gpus=4 * data, pipeline=4, zero=1), load)
    assert data * sum(stage["optimiser"] for stage in memory.stages) == pytest.approx(12 * arch.total_params, rel=1e-3)


def test_keys_and_values_are_split_into_heads_and_no_further():
    """Two of them: each of 8 GPUs has a whole one, as each of 2 has; all else is a quarter."""
    arch = dense(1, 1024, size=4096, heads=16, kv_heads=2)
    two, eight = (
        need(arch, Parallel(gpus=n, tensor=n), Load(phase="decode")).parts["weights"] for n in (2, 8)
    )
    one_head = 2 * 1024 * 64 * arch.dtype
    assert eight - one_head == pytest.approx((two - one_head) / 4)


def test_deepseek_v3_in_bf16_on_256_gpus_needs_what_nvidia_counts():
    # arXiv 2603.07685 table 3: PP4 x VPP4 x EP64, per GPU weights and gradients 36.4 GB, main weights and optimiser 32.1 GB,
    # activations 131.0 GB, all 199.5 GB; its other columns are not published. A middle stage has the states, the fullest the sum
    parallel = Parallel(gpus=256, pipeline=4, virtual=4, expert=64, zero=1)
    memory = need(model("deepseek_v3"), parallel, Load(phase="training", sequence=4096, micro_batches=64, order="interleaved"))
    middle = memory.stages[2]
    assert middle["weights"] + middle["gradients"] == pytest.approx(36.4 * GB, rel=0.02)
    assert middle["optimiser"] == pytest.approx(32.1 * GB, rel=0.02)
    assert memory.parts["activations"] == pytest.approx(131.0 * GB, rel=0.03)
    assert memory.nbytes == pytest.approx(199.5 * GB, rel=0.02)


def test_deepseek_v3_s_weights_with_tensor_parallel_are_what_an_analysis_of_it_counts():
    # arXiv 2502.07846: PP16, TP2, EP8, ETP1: 11.64 GiB in BF16; it does not split the shared expert, here it is split
    memory = need(model("deepseek_v3"), Parallel(gpus=1024, tensor=2, pipeline=16, expert=8), Load(phase="training"))
    assert memory.stages[5]["weights"] == pytest.approx(11.64 * GIB, rel=0.02)


@pytest.mark.parametrize(("micro_batch", "tensor", "pipeline", "measured"), [
    (2, 1, 1, 69.1), (4, 2, 1, 55.7), (2, 1, 2, 49.8), (4, 8, 1, 28.8),
])  # fmt: skip
def test_llama_2_7b_in_an_older_megatron_needs_4_to_11_percent_more(micro_batch, tensor, pipeline, measured):
    # github:NVIDIA/Megatron-LM pull 482, torch.cuda.max_memory_allocated on 8 H800 in GiB, no sequence parallel; 2,048 tokens are
    # not said, but nothing else comes near. It kept 4 values per inner activation (SwiGLU was not fused; 3 here) and more copies
    arch = dense(32, 4096, size=11008, heads=32, vocab=32000)
    parallel = Parallel(gpus=8, tensor=tensor, pipeline=pipeline, zero=1, sequence_parallel=False)
    load = Load(
        phase="training", micro_batch=micro_batch, sequence=2048, micro_batches=64, keeping=Keeping(dropout=True)
    )
    assert 1.04 < measured * GIB / need(arch, parallel, load).nbytes < 1.11


def test_llama_3_405b_was_trained_without_recomputation_and_fits():
    # arXiv 2407.21783 table 4 and §3.3.2: TP8, PP16, 8K tokens, chunks of one layer, gradients and optimiser states split.
    # On 8,192 GPUs a group has twice as many sequences, and needs what an H100 has beyond its data sheet
    for gpus, micro_batches, memory in ((16384, 16, H100), (8192, 32, 85.5e9)):
        parallel = Parallel(gpus=gpus, tensor=8, pipeline=16, virtual=8, zero=2)
        load = Load(phase="training", sequence=8192, micro_batches=micro_batches, order="interleaved")
        need(model("llama_3_1_405b"), parallel, load).check(memory)
        with pytest.raises(InputError, match=r"micro_batch=1 "):
            need(model("llama_3_1_405b"), parallel, replace(load, micro_batch=2)).check(memory)


def test_deepseek_v3_was_trained_without_tensor_parallel_and_fits_because_of_what_it_recomputes():
    # arXiv 2412.19437 §3.2.3: recomputing norms, up-projections and SwiGLU, and FP8 activations, made that possible
    parallel = Parallel(gpus=2048, pipeline=16, expert=64, zero=1)
    load = Load(
        phase="training", sequence=4096, micro_batches=120, order="dualpipe", keeping=TRAINED_AS_V3, weights="fp8",
        optimiser="adam_bf16", exchange="deepep_normal",
    )  # fmt: skip
    need(model("deepseek_v3"), parallel, load).check(H100)
    with pytest.raises(InputError, match=r"recompute=deepseek_v3 "):
        need(model("deepseek_v3"), parallel, replace(load, keeping=Keeping(linear=FP8))).check(H100)


def test_deepseek_v3_serves_on_18_h800_nodes_and_on_8_h200_and_not_on_8_h800():
    # EP144 with 32 redundant experts, 4,989 tokens of cache on average: github:deepseek-ai/open-infra-index day 6
    wide = Load(phase="decode", micro_batch=128, context=4989, exchange="deepep_low_latency", slots=2)
    need(model("deepseek_v3"), Parallel(gpus=144, expert=144), wide).check(H100)
    one = need(model("deepseek_v3"), Parallel(gpus=8, expert=8), Load(phase="decode", micro_batch=16, context=4096))
    one.check(141e9)                    # github:sgl-project/sglang benchmark/deepseek_v3: 8 H200, or 16 H100
    with pytest.raises(InputError, match=r"would fit: gpus=16 \("):
        one.check(H100)


@pytest.mark.parametrize(("name", "kilobytes"), [("deepseek_v3", 70.272), ("llama_3_1_405b", 516.096)])
def test_a_cached_token_is_as_large_as_published(name, kilobytes):
    # arXiv 2505.09343 table 1
    memory = need(model(name), Parallel(gpus=1), Load(phase="decode", context=1))
    assert memory.parts["cache"] == pytest.approx(kilobytes * 1000)


def test_a_tensor_group_splits_heads_of_the_cache_and_not_latents_nor_a_head():
    def cache(name, tensor):
        return need(model(name), Parallel(gpus=16, tensor=tensor), Load(phase="decode", context=1000)).parts["cache"]

    assert cache("deepseek_v3", 8) == cache("deepseek_v3", 1)
    assert cache("llama_3_1_405b", 8) == cache("llama_3_1_405b", 1) / 8
    assert cache("llama_3_1_405b", 16) == cache("llama_3_1_405b", 8)       # it has 8 heads of keys


@pytest.mark.parametrize(("experts", "tokens", "hidden", "megabytes"), [
    (256, 128, 7168, 1908.410496), (448, 2048, 5120, 35.55 * GIB / 1e6),
])  # fmt: skip
def test_low_latency_buffers_are_those_that_deepep_asks_for(experts, tokens, hidden, megabytes):
    # github:deepseek-ai/DeepEP issue 368; github:vllm-project/vllm issue 57894. Flags are left out; unpacked tokens are beside
    unpacked = experts * tokens * (hidden + hidden // 128 * 4)
    size = buffer_bytes("deepep_low_latency", gpus=64, experts=experts, hidden=hidden, tokens=tokens, rows=0)
    assert size - unpacked == pytest.approx(megabytes * 1e6, rel=1e-4)


@pytest.mark.parametrize("stages", [2, 4, 8, 16])
def test_micro_batches_at_once_are_those_of_the_papers(stages):
    many = 10 * stages

    def at_once(order, device, virtual=1):
        pipeline = ordered(order, stages, many, virtual)
        return most_kept(pipeline, device, [1.0] * pipeline.stages)

    for device in range(stages):
        assert at_once("one_f_one_b", device) == stages - device
        assert at_once("zero_bubble", device) == stages             # arXiv 2401.10241 §2: ZB-H1 as 1F1B at its peak
        assert at_once("zero_bubble_2p", device) == 2 * stages - 1
        assert at_once("dualpipe", device) == stages + 1            # github:deepseek-ai/DualPipe: of either of its two stages
    for virtual in (2, 4):                          # arXiv 2205.05198 §4.2.3: L layers times 1 + (p - 1) / (p m)
        assert at_once("interleaved", 0, virtual) == stages * virtual * (1 + (stages - 1) / (stages * virtual))


@pytest.mark.parametrize("order", pipelines.__all__)
def test_what_is_kept_is_given_back(order):
    pipeline = ordered(order, 4, 8, 2 if order in ("interleaved", "combined") else 1)
    for device in range(4):
        kinds = [task.kind for tasks in pipeline.tasks[device] for task in tasks]
        assert kinds.count("F") == kinds.count("B") + kinds.count("W")
        assert 1 <= most_kept(pipeline, device, [1.0] * pipeline.stages) <= kinds.count("F")


def test_layers_are_spread_evenly_with_fewer_at_the_ends():
    assert [len(c) for c in chunks_of(126, 16)] == [7, *[8] * 14, 7]           # Llama 3.1 405B, arXiv 2407.21783 §3.3.2
    assert [len(c) for c in chunks_of(126, 16, 8)] == [0, *[1] * 126, 0]
    for layers, stages, virtual in ((61, 16, 1), (61, 4, 4), (94, 8, 2), (3, 1, 1), (5, 4, 1)):
        chunks = chunks_of(layers, stages, virtual)
        assert [i for chunk in chunks for i in chunk] == list(range(layers))
    with pytest.raises(InputError, match=r"=8 x virtual=2: 16 chunks are more than the 6 layers; at most pipeline=4"):
        chunks_of(6, 8, 2)


def test_every_kind_of_part_is_counted_and_split_by_tensor_parallel():
    h = 256
    parts = (
        Attention(heads=8, kv_heads=8, head_dim=32, gated=True), Retention(heads=8, key_dim=h, value_dim=2 * h),
        Mamba(inner=2 * h, state=16, conv=4, dt_rank=16), Mamba2(inner=2 * h, state=64, conv=4, heads=8),
        Dense(size=4 * h, share=0.5), Moe(experts=8, top_k=2, size=h, shared_size=h), model("deepseek_v3").core.layers[0][0],
    )  # fmt: skip
    assert {type(part) for part in parts} == set(KINDS.values())
    for part in parts:
        arch = of_layers(((part,),), h)
        alone, split = (
            need(arch, Parallel(gpus=8, tensor=t, expert=t), Load(phase="training", sequence=64)).parts for t in (1, 8)
        )
        assert alone["activations"] > 64 * 2 * 2 * h
        assert alone["activations"] / 8 <= split["activations"] < alone["activations"] / 4
        assert alone["weights"] / 8 <= split["weights"] < alone["weights"]
        assert alone["weights"] == pytest.approx(2 * arch.total_params)


def test_parts_are_the_same_for_every_phase_and_only_training_has_gradients():
    for phase in ("prefill", "decode", "training"):
        parts = need(model("mixtral_8x7b"), Parallel(gpus=8, expert=8), Load(phase=phase, sequence=16)).parts
        assert tuple(parts) == PARTS
        assert all(nbytes >= 0 for nbytes in parts.values())
        assert (parts["gradients"] > 0) == (phase == "training")
        assert (parts["cache"] > 0) == (phase != "training")


def test_what_is_offered_does_fit_and_less_of_it_does_not():
    arch, parallel = model("mixtral_8x7b"), Parallel(gpus=8, expert=8)
    load = Load(phase="decode", micro_batch=1024, context=8192)
    memory = need(arch, parallel, load)
    with pytest.raises(InputError) as caught:
        memory.check(H100, name="h100_sxm", offers={"micro_batch": "workload.batch={}"})
    assert str(caught.value).startswith("memory: mixtral_8x7b does not fit on 8 GPUs of h100_sxm: a GPU has 80.0 GB and needs ")
    assert said(memory) in str(caught.value)
    offered = int(re.search(r"would fit: workload.batch=(\d+) \(", str(caught.value))[1])
    fits, does_not = (need(arch, parallel, replace(load, micro_batch=n)).nbytes for n in (offered, round(1.2 * offered)))
    assert fits <= H100 < does_not


def test_where_no_single_change_does_two_are_offered():
    with pytest.raises(InputError, match=r"would fit: gpus=\d+ with pipeline=\d+ \(") as caught:
        need(model("deepseek_v3"), Parallel(gpus=32, tensor=2, expert=32), Load(phase="training", sequence=4096)).check(H100)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "said_so"), [
    ({"phase": "trainin"}, "phase=trainin: must be one of prefill, decode, training; did you mean training?"),
    ({"optimiser": "adm"}, "optimiser=adm: must be one of adam, adam_bf16, muon"),
    ({"weights": "fp9"}, "weights=fp9: must be one of bf16, fp8"),
    ({"order": "dualpip"}, "parallel.order=dualpip: there is no such"),
])  # fmt: skip
def test_what_is_not_known_is_refused_by_name(change, said_so):
    with pytest.raises(InputError) as caught:
        need(model("mixtral_8x7b"), Parallel(gpus=8, expert=8), Load(**({"phase": "training"} | change)))
    assert said_so in str(caught.value)
    with pytest.raises(InputError, match="recompute=al: must be one of none, selective, norm_act, latents, deepseek_v3, full"):
        Keeping(recompute="al")
