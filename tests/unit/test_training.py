"""Training steps against closed forms and conservation: what a step consists of, and what each choice may change."""

import io
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from clustersim import load_cluster, simulate
from clustersim.config import compose
from clustersim.engine.collectives import ring_s, wires_of
from clustersim.engine.machines import none
from clustersim.kernels import load_kernel
from clustersim.parallel import Parallel
from clustersim.training.gradients import held, update
from tests.reports import TRAINED

SHARES = ["computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s", "bubble_s", "reduce_s", "optimiser_s", "gather_s"]
DENSE = ["model=llama_3_2_1b", "memory=ignore"]


def trained(*more):
    own = {text.partition("=")[0] for text in more}
    kept = (t for t in TRAINED if t.partition("=")[0] not in own and not ("model" in own and "n_layers" in t))
    return simulate([*kept, *more])


RUNS = {
    "plain": [],
    "overlapped": ["parallel.order=dualpipe", "parallel.zero=1", "trace=sampled"],
    "split": ["parallel.order=zero_bubble", "parallel.pipeline=4"],
    "twice": ["parallel.order=zero_bubble_2p", "parallel.zero=2"],
    "chunks": ["parallel.order=interleaved", "parallel.virtual=2", "parallel.zero=3"],
    "dense": [*DENSE, "parallel.tensor=2", "workload.recompute=full"],
    "context": [*DENSE, "parallel.context=2", "workload.hide_gradients=false"],
    "dropping": ["capacity.factor=1.0", "exchange=direct"],
    "one_gpu": ["topology.gpus_per_node=1", "parallel.pipeline=1", "model.n_layers=2"],
}


@pytest.mark.parametrize("name", RUNS)
def test_the_shares_of_every_device_are_the_step(name):
    result = trained(*RUNS[name])
    step, stages = result.summary["step_s"], result.tables["stages"]
    np.testing.assert_allclose(stages.select(pl.sum_horizontal(*SHARES)).to_series(), step, rtol=1e-9)
    assert (stages.select(SHARES).to_numpy() >= -1e-12 * step).all()
    tasks = result.tables["tasks"]
    took = tasks["end_s"] - tasks["begin_s"]
    np.testing.assert_allclose(tasks.select(pl.sum_horizontal(*SHARES[:5])).to_series(), took, rtol=1e-9, atol=1e-12 * step)
    row = result.summary
    together = row["compute_s"] + row["launch_s"] + row["exposed_comm_s"] + row["bubble_s"]
    assert together == pytest.approx(step, rel=1e-9)


def test_a_dense_model_on_one_gpu_is_a_sum_over_its_products():
    """Llama 3.2 1B by hand: 16 layers of 2,048, 32 heads of 64 and 8 for keys and values, FFN 8,192, vocabulary 128,256.

    Every product takes its FLOPs at the peak or its bytes at the memory's rate: activations in BF16 in and out, weights in BF16
    forward and for the gradient of the input, the weights' gradient in FP32. Scores and values of causal attention are
    4 x 2,048 FLOPs per pair of tokens, 2.5 times that on the way back.
    """
    sequence, micro_batches = 512, 3
    result = trained(
        *DENSE, "compute=roofline", "topology.gpus_per_node=1", "parallel.pipeline=1", f"workload.sequence={sequence}",
        f"workload.global_batch={micro_batches}",
    )  # fmt: skip
    gpu, t = load_cluster("h100_sxm").gpu, sequence
    hidden, layers, head = 2048, 16, (128256, 2048)
    layer = [((32 + 2 * 8) * 64, hidden), (hidden, 32 * 64), (2 * 8192, hidden), (hidden, 8192)]
    total = 0.0
    for n, k in [*layer * layers, head]:
        flops = 2 * t * n * k / gpu.bf16_flops
        total += 2 * max(flops, (2 * t * (n + k) + 2 * n * k) / gpu.memory_bandwidth)
        total += max(flops, (2 * t * (n + k) + 4 * n * k) / gpu.memory_bandwidth)
    total += layers * 3.5 * 4 * 2048 * (t * (t + 1) / 2) / gpu.bf16_flops
    assert result.summary["step_s"] == pytest.approx(micro_batches * total, rel=1e-9)


def test_a_model_without_experts_exchanges_nothing():
    stages = trained(*DENSE).tables["stages"]
    assert stages["exchanged_s"].sum() == stages["waited_s"].sum() == 0


def test_more_micro_batches_add_the_slowest_stages_time_each():
    """1F1B: once the pipeline is full it goes at the pace of the slowest stage, here the last, which has the unembedding."""
    few, many = (trained(*DENSE, f"workload.global_batch={n}") for n in (16, 32))
    added = many.summary["micro_batches"] - few.summary["micro_batches"]
    tasks = few.tables["tasks"].with_columns(took=pl.col("end_s") - pl.col("begin_s"))
    each = {kind: tasks.filter(pl.col("device") == 1, pl.col("kind") == kind)["took"][0] for kind in "FB"}
    assert added == 8
    grown = many.summary["step_s"] - few.summary["step_s"]
    assert grown == pytest.approx(added * (each["F"] + each["B"]), rel=1e-9)


def test_what_a_tensor_group_sends_is_the_rings_closed_form():
    """Two GPUs: half the activations leave each in a gather or scatter. Two parts per layer; two of these forward, three back."""
    sequence, hidden, layers = 256, 2048, 16
    result = trained(
        *DENSE, "compute=none", "parallel.tensor=2", "parallel.pipeline=1", f"workload.sequence={sequence}",
    )  # fmt: skip
    wires = wires_of(load_cluster("h100_sxm", nodes=1, gpus_per_node=4))
    kernel = load_kernel("nccl")            # 1 MiB: by LL, whose cap is 141 of 450 GB/s, sooner than by LL128 and Simple
    each = sequence * hidden * 2 / 2 / (kernel["ll_most"] * 450e9) + kernel["base_ll"] + 936.25e-9
    assert each < sequence * hidden * 2 / 2 / wires.nvlink + wires.nvlink_hop_s + wires.start_s
    for kind, rings in (("F", 2), ("B", 3)):
        sent = result.tables["tasks"].filter(pl.col("kind") == kind)["sent_s"]
        np.testing.assert_allclose(sent, layers * 2 * rings * each, rtol=1e-9)


def test_the_same_seed_gives_the_same_tables_byte_for_byte():
    def written(result):
        files = {name: io.BytesIO() for name in ("stages", "tasks", "memory", "summary")}
        for name, file in files.items():
            result.tables[name].write_parquet(file)
        return {name: file.getvalue() for name, file in files.items()}

    first, again, other = (trained("trace=sampled", f"seed={seed}") for seed in (0, 0, 1))
    assert written(first) == written(again)
    assert not first.tables["tasks"].equals(other.tables["tasks"])


def test_experts_gradients_travel_as_their_tokens_did():
    """Without computing a pass is its exchanges, and those of the way back carry the bytes of those forward."""
    tasks = trained("compute=none", "network=bound", "parallel.pipeline=1", "trace=sampled").tables["tasks"]
    took = tasks.with_columns(took=pl.col("exchanged_s") + pl.col("waited_s")).group_by("kind").agg(pl.mean("took"))
    forward, back = (took.filter(pl.col("kind") == kind)["took"][0] for kind in "FB")
    assert back == pytest.approx(forward, rel=1e-9)
    assert forward > 0


def test_uneven_experts_slow_a_step_down():
    even, skewed = (trained(f"trace={name}", "workload.sequence=2048").summary for name in ("balanced", "tiny"))
    assert even["imbalance"] == pytest.approx(1.0)
    assert skewed["imbalance"] > 1.05
    assert skewed["step_s"] > even["step_s"]
    assert skewed["wait_s"] > even["wait_s"]


def test_another_replica_leaves_the_pipeline_as_it_was():
    """Twice the data parallel groups with twice the sequences: the same tasks at the same times; only gradients go further."""
    one, two = (
        trained("parallel.expert=2", f"topology.nodes={nodes}", "topology.gpus_per_node=4", f"workload.global_batch={8 * nodes}",
                "trace=balanced", "parallel.pipeline=1")
        for nodes in (1, 2)
    )  # fmt: skip
    assert one.tables["tasks"].equals(two.tables["tasks"])
    assert two.summary["tokens"] == 2 * one.summary["tokens"]


def test_zero_changes_what_follows_the_passes_and_what_is_held():
    """Split optimisers are updated by the one GPU that has them; weights are then gathered."""
    plain, split = (trained(*DENSE, f"parallel.zero={zero}", "workload.hide_gradients=false") for zero in (0, 1))
    assert plain.tables["tasks"].equals(split.tables["tasks"])
    a, b = plain.tables["stages"], split.tables["stages"]
    for name in SHARES[:5]:
        assert (a[name] == b[name]).all()
    assert (b["optimiser_s"] < a["optimiser_s"]).all()
    assert a["gather_s"].sum() == 0
    assert (b["gather_s"] > 0).all()
    assert (b["reduce_s"] < a["reduce_s"]).all(), "a scatter is half an all-reduce"
    held = {
        name: dict(one.tables["memory"].group_by("part").agg(pl.sum("held_bytes")).iter_rows())
        for name, one in (("plain", plain), ("split", split))
    }
    assert {part for part in held["plain"] if held["plain"][part] != held["split"][part]} == {"optimiser"}
    assert held["split"]["optimiser"] == pytest.approx(held["plain"]["optimiser"] / 2), "two data parallel groups"


def test_full_recomputation_adds_one_forward_pass_to_every_backward_pass():
    kept, again = (trained(*DENSE, f"workload.recompute={how}").tables["tasks"] for how in ("none", "full"))
    first = pl.col("device") == 0               # the other device's forward pass ends with the unembedding, which is not repeated

    def took(tasks, kind):
        return tasks.filter(first, pl.col("kind") == kind).select(pl.col("end_s") - pl.col("begin_s")).to_series().mean()

    assert took(again, "F") == pytest.approx(took(kept, "F"), rel=1e-9)
    assert took(again, "B") - took(kept, "B") == pytest.approx(took(kept, "F"), rel=1e-9)


def test_dualpipe_reduces_over_both_devices_that_hold_a_stage():
    """Each has two stages of the same weights: a group is twice as large, and a GPU updates half of twice the weights."""
    model = compose(["model=llama_3_2_1b"]).model
    parallel = Parallel(gpus=16, pipeline=4, zero=1)
    wires, moved = wires_of(load_cluster("h100_sxm", nodes=2)), none()
    moved = replace(moved, move=lambda count, nbytes: nbytes)
    layers = tuple(range(4 * i, 4 * i + 4) for i in range(4))
    twice = update(held(model, (1, 2), layers, parallel), parallel, wires, moved, gradient_bytes=4.0, twin=1)
    one = held(model, (1,), layers, parallel)
    assert twice.reduce_s == ring_s(2 * one.dense * 4.0, np.array([0, 1, 2, 3, 4, 5, 6, 7]), wires)
    once = update(one, parallel, wires, moved, gradient_bytes=4.0)
    assert twice.optimiser_s == pytest.approx(once.optimiser_s)


def test_a_device_of_dualpipe_has_a_stage_of_either_end():
    result = trained("parallel.order=dualpipe", "parallel.pipeline=4")
    assert result.tables["stages"]["stages"].to_list() == ["0,3", "1,2", "2,1", "3,0"]
    assert result.tables["stages"]["layers"].sum() == 2 * 4
    plain = trained("parallel.pipeline=4")
    weights = [one.tables["memory"].filter(pl.col("part") == "weights")["held_bytes"].sum() for one in (plain, result)]
    assert weights[1] == pytest.approx(2 * weights[0])


def test_products_in_fp8_take_between_half_and_all_of_their_time_in_bf16():
    more = ["compute=roofline", "parallel.pipeline=1", "workload.sequence=2048"]
    bf16, fp8 = (trained(*more, f"model.gemm={gemm}").summary["compute_s"] for gemm in ("bf16", "fp8"))
    assert bf16 / 2 < fp8 < bf16
