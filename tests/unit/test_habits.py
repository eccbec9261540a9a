"""How a framework goes about a layer beyond its products: counted by hand, on a machine that only counts what it moves."""

from dataclasses import replace

import numpy as np
import pytest

from clustersim.cluster import load_cluster
from clustersim.engine.machines import Machine, kernels, none
from clustersim.engine.passes import PLAIN, Habits, expert_passes, part_passes
from clustersim.kernels import load_kernel
from clustersim.parts import Attention, Dense, Latent, Moe

HIDDEN, TOKENS = 64, 100
MOE = Moe(experts=8, top_k=2, size=32)
KERNEL = 1e6            # a kernel counts as much as so many bytes


def moving(**more) -> Machine:
    """Seconds are bytes moved, and a kernel is `KERNEL` of them; products and scores take no time."""
    return replace(none(), move=lambda count, nbytes: np.where(nbytes > 0, count * KERNEL + nbytes, 0.0), **more)


def of_part(part, habits, machine=None):
    made = part_passes(part, HIDDEN, np.array([TOKENS]), np.array([1.0]), machine or moving(), habits=habits)
    return float(made.forward_s[0]), float(made.input_s[0])


def of_experts(moe, habits=PLAIN, rows=(50, 150)):
    slots = np.array(rows)
    made = expert_passes(moe, HIDDEN, slots, np.zeros(slots.size, np.int64), 1, moving(), np.array([float(slots.sum())]), habits)
    return float(made.forward_s[0]), float(made.input_s[0])


def test_a_router_widens_what_it_reads_and_goes_four_times_over_its_scores():
    plain, routed = of_part(MOE, PLAIN), of_part(MOE, Habits(router=31))
    assert routed[0] - plain[0] == pytest.approx(31 * KERNEL + TOKENS * HIDDEN * (2 + 4) + 4 * 2 * TOKENS * 8 * 4)
    assert routed[1] == plain[1]


def test_copies_are_made_and_summed_at_home_both_ways():
    """A token is read once and written top_k times, and the other way round for its results."""
    plain, copied = of_part(MOE, PLAIN), of_part(MOE, Habits(copies=True))
    each = 2 * KERNEL + 2 * TOKENS * (1 + 2) * HIDDEN * 2
    assert np.subtract(copied, plain) == pytest.approx([each, each])


@pytest.mark.parametrize(("part", "habits", "more"), [
    (Dense(size=96), Habits(norms_again=True), KERNEL + 2 * TOKENS * HIDDEN * 2),
    (Dense(size=96), Habits(activations_again=True), KERNEL + TOKENS * 3 * 96 * 2),
    (Attention(heads=4, kv_heads=4, head_dim=16), Habits(activations_again=True), 0),
])  # fmt: skip
def test_what_is_computed_again_is_added_to_the_way_back_alone(part, habits, more):
    plain, again = of_part(part, PLAIN), of_part(part, habits)
    assert again[0] == plain[0]
    assert again[1] - plain[1] == pytest.approx(more)


def test_of_latents_the_products_between_the_first_and_the_last_are_made_again():
    latent = Latent(heads=4, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8)
    counting = moving(product=lambda rows, n, k: rows * float(n * k))
    plain, again = (of_part(latent, habits, counting) for habits in (PLAIN, Habits(latents_again=True)))
    assert again[1] - plain[1] == pytest.approx(TOKENS * (24 * 4 * 12 + 16 * 4 * 16))


def test_experts_make_their_activation_again():
    plain, again = of_experts(MOE), of_experts(MOE, Habits(activations_again=True))
    assert again[0] == plain[0]
    assert again[1] - plain[1] == pytest.approx(KERNEL + 200 * 3 * 32 * 2)


def test_rows_are_padded_and_cut_off_again_both_ways():
    plain, padded = of_experts(MOE), of_experts(MOE, Habits(padded=True))
    each = 2 * KERNEL + 200 * 4 * HIDDEN * 2
    assert np.subtract(padded, plain) == pytest.approx([each, each])


def test_biases_and_clamps_of_experts_are_kernels_of_their_own():
    """200 rows, two experts. Forward two clamps (a half each, in and out) and both joined: 4 values for each that goes in; biases
    are two kernels, and two for each expert. Back 5 values for each that went in, two kernels more, and six for each expert."""
    plain, biased = of_experts(MOE), of_experts(replace(MOE, biased=True))
    assert biased[0] - plain[0] == pytest.approx((3 + 2 + 2 * 2) * KERNEL + 200 * (4 * 64 * 2 + 28 * HIDDEN))
    assert biased[1] - plain[1] == pytest.approx((3 + 2 + 6 * 2) * KERNEL + 200 * (5 * 64 * 2 + 40 * HIDDEN))


def h100(scaling="block", gemm="bf16") -> tuple[Machine, object]:
    gpu = load_cluster("h100_sxm", nodes=1).gpu
    return kernels(gpu, gemm, "deepgemm_2025_07", "gemm", 0, "megatron", scaling), gpu


def test_scores_of_narrow_heads_wait_for_their_exponentials():
    """As FlashAttention-3 prints for heads of 128 and 64 (616 and 473 TFLOPS): the same FLOPs take 1.30 times as long."""
    machine, gpu = h100()
    flops = np.array([1e15])
    wide, narrow = (machine.mixing(flops, False, width)[0] for width in (128.0, 64.0))
    assert narrow / wide == pytest.approx(616 / 473, rel=2e-3)
    assert 1e15 / wide == pytest.approx(616e12, rel=0.02)
    found = machine.mixing(flops, False, 160.0)[0]
    assert found == pytest.approx(1e15 / (gpu.bf16_flops * 0.667), rel=1e-4)
    assert machine.mixing(flops, False, 512.0)[0] == found, "wider ones are given no more than was measured"


def test_every_expert_s_rows_are_quantised_by_themselves():
    """One scale for all: a kernel finds it, one makes it and one applies it, for each of the experts that have rows."""
    machine, _ = h100("tensor", "fp8")
    pass_s = load_kernel("gemm")["memory_pass"]
    owner = np.zeros(16, np.int64)
    one, many = (np.zeros(16, np.int64) for _ in range(2))
    one[0], many[:] = 16 * 128, 128
    took = [machine.grouped(rows, owner, 1, 64, 64)[0] for rows in (one, many)]
    assert took[1] - took[0] >= 15 * 3 * pass_s
    assert took[1] - took[0] < 16 * 3 * pass_s
