"""Decoding: what sequences hold, what reading it takes, and which tokens count."""

import numpy as np
import pytest

from clustersim import load_cluster, simulate
from clustersim.assembling import assemble
from clustersim.config import compose
from clustersim.types import InputError, Workload
from clustersim.workload.serving import Decoding, with_lengths

ONE_GPU = ["topology=ideal_rail", "topology.nodes=1", "topology.gpus_per_node=1", "compute=roofline", "network=bound"]
EVEN = ["workload.context_spread=0", "trace=balanced"]


def lengths(n_gpus=4, steps=1, seed=0, **changes):
    keys = {"sequences": 500, "context": 1000.0, "context_spread": 0.5, "rank_spread": 0.0, "draft": 0, "accepted": 1.0}
    decoding = Decoding(**(keys | changes))
    each = decoding.sequences * decoding.per_sequence
    source, index = np.divmod(np.arange(n_gpus * each), each)
    step = Workload(source=source, index=index, context=np.ones_like(index), choose=lambda layer: None)
    return [made.context for made in with_lengths((step,) * steps, decoding, n_gpus, seed)]


def test_sequences_hold_as_much_as_asked_on_average_and_spread_as_asked():
    """Lognormal: mean and deviation are those asked for; 20,000 draws, four standard errors."""
    drawn = lengths(n_gpus=40)[0]
    assert abs(drawn.mean() - 1000) < 4 * 500 / np.sqrt(drawn.size)
    fourth = np.mean(((drawn - drawn.mean()) / drawn.std()) ** 4)
    assert abs(drawn.std() - 500) < 4 * 500 * np.sqrt((fourth - 1) / 4 / drawn.size)
    assert set(lengths(context_spread=0.0)[0].tolist()) == {1000}


def test_ranks_differ_where_they_are_asked_to():
    """All sequences of a GPU share a factor: with a spread of 0.3 means of 2,000 ranks vary by 0.3, not by 0.5 / sqrt(500)."""
    means = lengths(n_gpus=2000, rank_spread=0.3, sequences=20, context_spread=0.0)[0].reshape(2000, 20).mean(axis=1)
    assert abs(means.std() / means.mean() - 0.3) < 0.03
    assert np.ptp(lengths(n_gpus=2000, sequences=20, context_spread=0.0)[0].reshape(2000, 20).mean(axis=1)) == 0


def test_the_seed_decides_and_steps_grow_by_what_is_kept():
    first, second, third = lengths(steps=3, draft=2, accepted=2.5)
    np.testing.assert_array_equal(first, lengths(draft=2, accepted=2.5)[0])
    assert (first != lengths(seed=1, draft=2, accepted=2.5)[0]).any()
    np.testing.assert_array_equal(first.reshape(-1, 3) - first.reshape(-1, 3)[:, :1], np.tile([0, 1, 2], (2000, 1)))
    assert set((second - first).tolist()) == {2}
    assert set((third - first).tolist()) == {5}


def test_one_gpu_decodes_as_fast_as_it_reads_weights_and_caches():
    """Llama 3.2 1B in BF16, 16 sequences of 4,096: every weight once, and 2 x 8 x 64 values per token and layer."""
    result = simulate([*ONE_GPU, *EVEN, "model=llama_3_2_1b", "workload=decode", "workload.tokens_per_gpu=16"])
    gpu = load_cluster("ideal_rail").gpu
    attention, ffn = 2048 * 64 * (2 * 32 + 2 * 8), 3 * 2048 * 8192
    cache = 16 * (4096 + 1) * 2 * 8 * 64            # read, and one token written
    activations = 2 * 16 * 2 * 2048
    layer = 2.0 * (attention + ffn + cache + activations) / gpu.memory_bandwidth
    head = 2.0 * (128256 * 2048 + 16 * (128256 + 2048)) / gpu.memory_bandwidth
    assert result.summary["step_s"] == pytest.approx(16 * layer + head, rel=1e-9)
    assert result.summary["tokens_per_s"] == pytest.approx(16 / result.summary["step_s"], rel=1e-12)
    assert result.summary["time_per_output_token_s"] == pytest.approx(result.summary["step_s"], rel=1e-12)
    assert result.summary["tokens_per_s_per_user"] == pytest.approx(1 / result.summary["step_s"], rel=1e-12)


def test_drafts_cost_arithmetic_and_no_second_look_at_the_cache():
    """Bound by memory: 3 tokens of a sequence instead of 1 add activations and new entries only, here below 3 %."""
    ask = [*ONE_GPU, *EVEN, "model=llama_3_2_1b", "workload=decode", "workload.tokens_per_gpu=16"]
    one = simulate(ask).summary
    three = simulate([*ask, "workload.draft=2", "workload.accepted=2.4"]).summary
    assert one["step_s"] < three["step_s"] < 1.03 * one["step_s"]
    assert three["tokens_per_s"] == pytest.approx(16 * 2.4 / three["step_s"], rel=1e-12)
    assert three["time_per_output_token_s"] == pytest.approx(three["step_s"] / 2.4, rel=1e-12)
    assert three["tokens"] == 48


def test_a_window_bounds_what_is_read():
    """GPT-OSS: every other layer looks at 128 tokens, so that 32,768 instead of 4,096 make only the others longer."""
    ask = ["workload=decode", "workload.context_spread=0", "network=bound", "topology.nodes=1", "workload.tokens_per_gpu=64"]
    near, far = (simulate([*ask, f"workload.context={context}"]).tables["gpus"] for context in (4096, 32768))
    windowed, whole = ([table.filter(layer=layer)["attention_s"].mean() for table in (near, far)] for layer in (2, 3))
    assert windowed[0] == pytest.approx(windowed[1], rel=1e-12)
    assert whole[1] > 4 * whole[0]


def test_uneven_sequences_make_ranks_wait():
    ask = ["workload=decode", "network=bound", "topology.nodes=2", "workload.tokens_per_gpu=64", "workload.context=32768"]
    even, uneven = (simulate([*ask, f"workload.rank_spread={spread}", "workload.context_spread=0"]) for spread in (0, 0.3))
    attention = uneven.tables["gpus"].filter(layer=1)["attention_s"].to_numpy()
    assert attention.max() > 1.3 * attention.min()
    assert np.ptp(even.tables["gpus"].filter(layer=1)["attention_s"].to_numpy()) == 0
    assert uneven.summary["step_s"] > even.summary["step_s"]


def test_low_latency_exchanges_leave_a_buffer_per_expert():
    """Its rows are not padded to 128 each: with a few tokens per expert masked GEMMs and one pass are faster."""
    ask = ["workload=decode", "network=bound", "topology.nodes=1", "workload.tokens_per_gpu=32"]
    masked, contiguous = (simulate([*ask, f"exchange={name}"]) for name in ("deepep_low_latency", "deepep_normal"))
    parts = assemble(compose([*ask, "exchange=deepep_low_latency"]))
    placement = parts.placements[0]
    rows = masked.tables["experts"].filter(layer=0)["kept"].to_numpy()[placement.expert_of]
    expected = parts.timing.experts(rows, placement.gpu_of, 8, layout="masked", buffered=np.full(8, 4.0 * 8 * 32))
    np.testing.assert_allclose(masked.tables["gpus"].filter(layer=0)["expert_s"], expected, rtol=1e-12)
    assert masked.tables["gpus"]["expert_s"].mean() < contiguous.tables["gpus"]["expert_s"].mean()


@pytest.mark.parametrize(("given", "said"), [
    (["workload.accepted=2"], "workload.accepted=2: no more tokens can be kept than are verified; workload.draft=0 allows 1"),
    (["workload.draft=1.5"], "workload.draft=1.5: must be a whole number"),
    (["workload.context=0"], "workload.context=0: must be a number from 1 up"),
    (["workload.rank_spread=-1"], "workload.rank_spread=-1: must be a number from 0 up"),
    (["workload.phase=prefill"], "workload.phase=prefill: is set by the group; write workload=prefill"),
    (["router=expert_choice", "trace=sampled"], "router=expert_choice: ranks the tokens of a batch"),
])  # fmt: skip
def test_what_decoding_cannot_is_refused(given, said):
    with pytest.raises(InputError) as refused:
        simulate(["workload=decode", *given])
    assert said in str(refused.value)


def test_a_drafter_is_one_more_layer_and_unembedding():
    """Llama 3.2 1B, 8 sequences with one draft: a layer like the last, the table read once more, and 4,096 values made 2,048."""
    few = [*ONE_GPU, *EVEN, "model=llama_3_2_1b", "workload=decode", "workload.tokens_per_gpu=8", "workload.draft=1"]
    plain, drafting = (simulate([*few, f"workload.drafter={made}"]) for made in ("null", "mtp"))
    took = plain.tables["gpus"].select("attention_s", "other_s").sum_horizontal()
    head = took[15] - took[5]
    gpu = load_cluster("ideal_rail").gpu
    joined = (2048 * 4096 * 2 + 16 * (2048 + 4096) * 2) / gpu.memory_bandwidth
    assert drafting.summary["step_s"] == pytest.approx(plain.summary["step_s"] + took[5] + head + joined, rel=1e-9)
    assert drafting.summary["tokens_per_s"] < plain.summary["tokens_per_s"]
    none = simulate([*few[:-1], "workload.drafter=mtp"])
    assert none.run.model.n_layers == 16
    with pytest.raises(InputError, match=r"^workload\.drafter=eagle: must be mtp or null"):
        simulate([*few, "workload.drafter=eagle"])
