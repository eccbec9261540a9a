"""The host that launches kernels: sums by hand, graphs that switch it off, and the longer of the two in a pass."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim.engine.blocks import PRECISIONS
from clustersim.engine.launches import expert_launches, own_launches
from clustersim.engine.program import COMMUNICATE, COMPUTE, Op, Ran
from clustersim.kernels import load_kernel
from clustersim.parts import Attention, Dense, Moe
from clustersim.training.blocks import Blocks
from tests.unit.test_training import trained

HOST = load_kernel("host")
HEADS = Attention(heads=4, kv_heads=4, head_dim=16)
EAGER = ["workload.cuda_graphs=none", "parallel.pipeline=1", "model.n_layers=2", "trace=balanced"]


def test_a_dense_layer_by_hand():
    """Attention: two products and what was measured around them; FFN: two products, norm, residual, activation."""
    made = own_launches((HEADS, Dense(size=64)), 64, PRECISIONS["bf16"], exchange="direct")
    assert made.forward_s == pytest.approx(4 * HOST["gemm"] + (HOST["attention"] + 3) * HOST["op"])
    assert made.weight_s == pytest.approx(4 * HOST["gemm"])
    narrow = own_launches((HEADS, Dense(size=64)), 64, PRECISIONS["fp8"], exchange="direct")
    assert narrow.weight_s == pytest.approx(HOST["quantised"] * made.weight_s)


def test_every_expert_is_a_product_of_its_own():
    one, many = (expert_launches(n, PRECISIONS["bf16"], exchange="direct") for n in (1, 16))
    assert many.weight_s == pytest.approx(16 * one.weight_s)
    assert many.forward_s - one.forward_s == pytest.approx(15 * 2 * HOST["gemm"])


def test_biases_of_experts_are_two_operations_each_and_six_on_the_way_back():
    plain, biased = (expert_launches(16, PRECISIONS["bf16"], exchange="direct", biased=b) for b in (False, True))
    assert biased.forward_s - plain.forward_s == pytest.approx(32 * HOST["op"])
    assert biased.input_s - plain.input_s == pytest.approx(96 * HOST["op"])


def test_an_exchange_that_permutes_for_itself_leaves_two_permutations():
    plain, fused = (expert_launches(4, PRECISIONS["bf16"], exchange=name) for name in ("nccl_alltoall", "hybrid_ep"))
    assert plain.forward_s - fused.forward_s == pytest.approx((HOST["dispatcher"] - 2) * HOST["op"])


@pytest.mark.parametrize(("experts", "late"), [(1.0, 0.0), (2.0, 0.0), (5.0, 3.0)])
def test_before_experts_the_host_has_run_ahead_of_nothing(experts, late):
    """The router ends at 1, and so the host begins with experts there; on the GPU they end at 3. What came before was launched
    during the pass before, and what the next layer needs ends 3 s after the experts."""
    ops = [
        Op(stream=COMPUTE, part="own_f", layer=0), Op(stream=COMMUNICATE, part="dispatch", layer=0, after=(0,)),
        Op(stream=COMPUTE, part="experts_f", layer=0, after=(1,)), Op(stream=COMMUNICATE, part="combine", layer=0, after=(2,)),
        Op(stream=COMPUTE, part="own_f", layer=1, after=(3,)),
    ]  # fmt: skip
    start, end = (np.array(times, float)[:, None] for times in ((0, 1, 2, 3, 4), (1, 2, 3, 4, 6)))
    ran = Ran(start=start, end=end, free=end, exchanges={}, step_s=6.0, solves=0, events=0)
    host = SimpleNamespace(_launched=lambda layer, part: experts if part == "experts_f" else 0.5)
    assert Blocks._late(host, ops, ran) == pytest.approx(late)


def test_an_exchange_that_prepares_itself_leaves_the_router_fewer_kernels():
    layer = (HEADS, Moe(experts=8, top_k=2, size=32))
    plain, fused = (own_launches(layer, 64, PRECISIONS["bf16"], exchange=name) for name in ("nccl_alltoall", "deepep_normal"))
    assert plain.forward_s - fused.forward_s == pytest.approx((HOST["router"] - HOST["router_fused"]) * HOST["op"])


def test_a_pass_takes_the_longer_of_gpu_and_host():
    """A small micro-batch waits for the host forward, and then a larger one takes no longer; a long one does not wait at all."""
    short, longer, long = (trained(*EAGER, "memory=ignore", f"workload.sequence={n}").tables["tasks"] for n in (16, 64, 16384))
    short, longer = (one.filter(one["kind"] == "F") for one in (short, longer))
    took = [(one["end_s"] - one["begin_s"]).to_numpy() for one in (short, longer)]
    np.testing.assert_allclose(*took, rtol=1e-9)
    assert short["launched_s"].min() > longer["launched_s"].min() > 0
    assert long["launched_s"].max() == 0


def test_graphs_take_the_host_out_of_it():
    launched = [trained(*EAGER, f"workload.cuda_graphs={graphs}").summary["launch_s"] for graphs in ("none", "attention", "all")]
    assert launched[0] > launched[1] > launched[2] == 0


def test_a_framework_of_few_long_kernels_waits_for_no_host():
    assert trained(*EAGER, "workload.framework=null").summary["launch_s"] == 0


def test_tensor_groups_that_overlap_expose_less_and_no_less_than_a_piece():
    dense = ["model=llama_3_2_1b", "memory=ignore", "parallel.tensor=4", "parallel.pipeline=1", "workload.sequence=4096"]
    plain, hidden = (trained(*dense, f"parallel.tensor_overlap={value}").summary["tensor_comm_s"] for value in ("false", "true"))
    assert 0 < hidden < plain / 2


@pytest.mark.parametrize("scaling", ["tensor", "mx"])
def test_scalings_that_tensor_cores_or_nobody_applies_are_faster_than_blocks_on_hopper(scaling):
    asked = ["model=llama_3_2_1b", "memory=ignore", "++model.gemm=fp8", "parallel.pipeline=1", "workload.sequence=4096"]
    blocks, other = (trained(*asked, f"workload.scaling={name}").summary["compute_s"] for name in ("block", scaling))
    assert other < blocks
