"""The time of a GEMM, each limit alone in closed form, and what holds of all of them together."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim import load_cluster
from clustersim.engine.blocks import PRECISIONS
from clustersim.engine.gemm import Kernels, Precision, dense_gemm_seconds, grouped_seconds
from clustersim.engine.tiles import Tile, deepgemm_2025_02, deepgemm_2025_07
from clustersim.gpuspec import GpuSpec
from clustersim.types import InputError

SQUARE = Tile(64, 64, "", False)
NEVER = 1e40            # a rate that never limits
GPU = GpuSpec(
    name="round numbers", bf16_flops=NEVER, fp8_flops=NEVER, memory=80e9, memory_bandwidth=NEVER, sms=4, l2_bandwidth=NEVER,
    memory_latency=1e-30, bf16_achieved=NEVER, fp8_achieved=NEVER, memory_achieved=NEVER,
)  # fmt: skip
FP8 = Precision(rate="fp8", activation_bytes=1.0, weight_bytes=1.0)
H100 = load_cluster("h100_sxm").gpu


def fixed(tile):
    return lambda layout, m, n, groups, sms: tile


def kernels(tile=SQUARE, sms=4, overlap=1.0, rule=None, **gpu):
    return Kernels(
        gpu=dataclasses.replace(GPU, **gpu), rule=rule or fixed(tile), sms=sms, overlap=overlap, launch_s=0.0, pass_s=0.0,
        score_share=1.0,
    )  # fmt: skip


def real(rule=deepgemm_2025_07, sms=132, gpu=H100):
    return Kernels(gpu=gpu, rule=rule, sms=sms, overlap=4.0, launch_s=5e-7, pass_s=3e-6, score_share=0.667)


def dense(rows, n, k, **options):
    return dense_gemm_seconds(np.array([rows]), n, k, precision=options.pop("precision", FP8), kernels=kernels(**options))[0]


@pytest.mark.parametrize(("rows", "waves"), [(1, 1), (64, 1), (256, 1), (257, 2), (512, 2), (513, 3)])
def test_arithmetic_comes_in_waves_of_tiles_over_the_sms(rows, waves):
    """64 rows to a tile, 4 SMs: a wave holds 256 rows; each SM does a quarter of 4e12 FLOP/s. One row costs a whole tile."""
    one_tile = 2 * 64 * 64 * 1024 / 1e12
    np.testing.assert_allclose(dense(rows, 64, 1024, fp8_achieved=4e12), waves * one_tile, rtol=1e-12)


def test_sms_that_communication_keeps_make_more_waves():
    two = dense(256, 64, 1024, fp8_achieved=4e12, sms=2)
    np.testing.assert_allclose(two, 2 * dense(256, 64, 1024, fp8_achieved=4e12), rtol=1e-12)


@pytest.mark.parametrize(
    ("columns", "as_wide_as"), [(16, 64), (64, 64), (112, 128), (128, 128), (144, 192), (192, 192), (256, 256)]
)
def test_narrow_tiles_wait_for_rows_and_crooked_ones_for_a_second_scale(columns, as_wide_as):
    """192 = 128 + 64 meets two scales as well, and is a multiple of 64."""
    step = 2 * 64 * as_wide_as * 128 / 1e12
    np.testing.assert_allclose(dense(1, columns, 128, tile=Tile(64, columns, "", False), fp8_achieved=4e12), step, rtol=1e-12)


def test_without_scales_only_narrow_tiles_cost_more_than_they_hold():
    """BF16: 64 values of K to a step of 128 bytes."""
    bf16 = PRECISIONS["bf16"]
    for columns, as_wide_as in ((16, 64), (112, 112)):
        seconds = dense(1, columns, 64, tile=Tile(64, columns, "", False), precision=bf16, bf16_achieved=4e12)
        np.testing.assert_allclose(seconds, 2 * 64 * as_wide_as * 64 / 1e12, rtol=1e-12)


def test_memory_delivers_rows_and_takes_the_output_once():
    nbytes = 100 * 1024 * 1.0 + 64 * 1024 * 1.0 + 100 * 64 * 2
    np.testing.assert_allclose(dense(100, 64, 1024, memory_achieved=1e9), nbytes / 1e9, rtol=1e-12)


def test_only_the_weights_of_groups_with_rows_are_read():
    """Two GPUs: 3 groups of which one is idle, and 2 that both are."""
    rows, owner = np.array([5, 0, 7, 0, 0]), np.array([0, 0, 0, 1, 1])
    for layout in ("contiguous", "masked"):
        seconds = grouped_seconds(
            rows, owner, 2, 64, 1024, layout=layout, precision=FP8, kernels=kernels(Tile(128, 64, "", False), memory_achieved=1e9)
        )
        np.testing.assert_allclose(seconds, [(12 * (1024 + 128) + 2 * 64 * 1024) / 1e9, 0], rtol=1e-12)


@pytest.mark.parametrize(("shared", "lines"), [("", 64 + 128), ("a", 32 + 128), ("b", 64 + 64)])
def test_the_l2_serves_the_operands_of_every_tile_and_neighbours_fetch_one_side_together(shared, lines):
    """3 tiles of 64 x 128 are in the wave; a step brings 128 bytes of each row and column. The output leaves by the L2 too."""
    seconds = dense(192, 128, 1024, tile=Tile(64, 128, shared, False), l2_bandwidth=1e9)
    np.testing.assert_allclose(seconds, (3 * lines * 128 * 8 + 3 * 64 * 128 * 2) / 1e9, rtol=1e-12)


def test_the_waits_for_l2_and_memory_add_up_to_their_norm():
    """Per step of its one tile the L2 brings 128 lines of 128 B, and memory the same. The output is free."""
    options = {"l2_bandwidth": 1e9, "memory_achieved": 1e9, "precision": dataclasses.replace(FP8, output_bytes=0.0)}
    for norm in (1.0, 2.0, 4.0):
        expected = 8 * (2 * (128 * 128 / 1e9) ** norm) ** (1 / norm)
        np.testing.assert_allclose(dense(64, 64, 1024, overlap=norm, **options), expected, rtol=1e-9)


def test_a_kernel_that_waits_for_stores_pays_for_them_tile_by_tile():
    """Memory so slow that the output of a wave takes 64 x 64 x 2 B x 4 tiles / 1e6 B/s, and 3 us to answer; rows cost nothing."""
    waits = dense(
        512, 64, 128, tile=Tile(64, 64, "", True), memory_achieved=1e6, memory_latency=3e-6,
        precision=dataclasses.replace(FP8, activation_bytes=0.0, weight_bytes=0.0),
    )  # fmt: skip
    np.testing.assert_allclose(waits, 3e-6 + 2 * (3e-6 + 4 * 64 * 64 * 2 / 1e6), rtol=1e-9)


def test_the_first_load_takes_the_latency_of_memory():
    assert dense(1, 64, 128, memory_latency=4e-7) == pytest.approx(4e-7, rel=1e-9)


def test_nothing_takes_no_time():
    assert dense(0, 64, 1024, memory_latency=1.0) == 0


@given(
    rows=st.lists(st.integers(0, 3000), min_size=4, max_size=4), n=st.integers(1, 80).map(lambda i: 64 * i),
    k=st.integers(1, 40).map(lambda i: 128 * i), name=st.sampled_from(["bf16", "fp8"]),
    layout=st.sampled_from(["contiguous", "masked"]), rule=st.sampled_from([deepgemm_2025_02, deepgemm_2025_07]),
)  # fmt: skip
def test_no_kernel_beats_the_roofline(rows, n, k, name, layout, rule):
    rows, precision = np.array(rows), PRECISIONS[name]
    seconds = grouped_seconds(rows, np.zeros(4, int), 1, n, k, layout=layout, precision=precision, kernels=real(rule))[0]
    flops = 2.0 * rows.sum() * n * k / H100.peak_flops(precision.rate)
    nbytes = rows.sum() * (k * precision.activation_bytes + 2.0 * n) + (rows > 0).sum() * n * k * precision.weight_bytes
    assert seconds >= max(flops, nbytes / H100.memory_bandwidth) * (1 - 1e-12)


@given(rows=st.lists(st.integers(0, 2000), min_size=8, max_size=8), more=st.integers(1, 300), group=st.integers(0, 7))
@pytest.mark.parametrize("layout", ["contiguous", "masked"])
def test_a_fixed_tile_never_gets_faster_with_more_rows(rows, more, group, layout):
    """Where the rule turns to another tile it may: 512 dense rows of 2112 x 7168 share them between neighbours, 511 do not."""
    made = real(fixed(Tile(128, 128, "", False)))
    both = []
    for extra in (0, more):
        given = np.array(rows)
        given[group] += extra
        seconds = grouped_seconds(given, np.zeros(8, int), 1, 4096, 7168, layout=layout, precision=FP8, kernels=made)
        both.append(seconds[0])
    assert both[1] >= both[0] * (1 - 1e-12)


def test_a_gpu_without_the_format_multiplies_at_the_bf16_rate():
    a100 = load_cluster("a100_sxm").gpu
    assert a100.achieved_flops("fp8") == a100.achieved_flops("fp4") == a100.achieved_flops("bf16") == 250.6e12
    assert H100.achieved_flops("fp4") == H100.achieved_flops("bf16") < H100.achieved_flops("fp8")


@pytest.mark.parametrize("key", ["bf16_achieved", "fp8_achieved", "memory_achieved"])
def test_nothing_is_achieved_beyond_the_data_sheet(key):
    nominal = {"bf16_achieved": 989.4e12, "fp8_achieved": 1978.9e12, "memory_achieved": 3.35e12}[key]
    assert getattr(dataclasses.replace(H100, **{key: nominal}), key) == nominal
    with pytest.raises(InputError, match=rf"gpu\.{key} = .*cannot exceed"):
        dataclasses.replace(H100, **{key: 1.01 * nominal})


def test_a_gpu_that_does_not_say_what_kernels_need_is_refused_by_name():
    with pytest.raises(InputError, match=r"^topology\.gpu\.l2_bandwidth: .* does not say it, and compute=kernels needs it"):
        dataclasses.replace(H100, l2_bandwidth=None).need_kernels()
