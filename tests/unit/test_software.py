"""What exchanges keep of a GPU while they run, and what is left to compute with."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clustersim import exchange as exchanges
from clustersim import load_cluster
from clustersim.config import compose
from clustersim.engine import timing
from clustersim.exchange.software import equipped, sms_held
from clustersim.kernels import load_kernel
from clustersim.types import InputError

H100 = load_cluster("h100_sxm", nodes=1)


def test_kernels_that_copy_hold_the_sms_they_are_told():
    assert sms_held("deepep_normal", {"sms": 20, "notify": True}, H100) == 20
    assert sms_held("deepep_normal", {}, H100) == 24
    assert sms_held("hybrid_ep", {}, H100) == 16


def test_nccl_holds_one_sm_for_each_channel():
    """18 NVLinks to each of 7 peers are more than the 32 channels that NCCL has; 12 on each of 2 A100s are fewer."""
    assert sms_held("nccl_alltoall", {}, H100) == 32
    assert sms_held("nccl_alltoall", {}, load_cluster("a100_sxm", nodes=1, gpus_per_node=2)) == 12


def test_a_channel_copies_as_fast_as_the_gpus_clock_goes():
    """Half of what an SM copies goes each way: two peers of an A100 have 24 channels at 1.41 GHz, where H100's go at 1.98."""
    kernel, a100 = load_kernel("nccl"), load_cluster("a100_sxm", nodes=1, gpus_per_node=3)
    lanes = equipped("nccl_alltoall", {}, a100).capacity[a100.n_wires :]
    assert lanes == pytest.approx(24 * kernel["sm_rate"] / 2 * kernel["clock_a100"] / kernel["clock"])
    assert 0.5 < kernel["clock_a100"] / kernel["clock"] < 1


def test_what_no_kernel_prices_and_what_the_nic_moves_hold_none():
    for name in ("direct", "pairwise", "deepep_low_latency", "deepep_low_latency_rdma"):
        assert sms_held(name, {}, H100) == 0


def test_a_grid_of_tokens_leaves_nothing():
    assert sms_held("trtllm_one_sided", {}, H100) == H100.gpu.sms


@pytest.mark.parametrize("path", sorted(Path(exchanges.__file__).parents[1].glob("conf/exchange/*.yaml")), ids=lambda p: p.stem)
def test_every_exchange_says_how_many_sms_it_holds_of_a_gpu(path):
    options = {k: v for k, v in compose([f"exchange={path.stem}"]).config["exchange"].items() if k != "name"}
    assert 0 <= sms_held(path.stem, options, H100) <= H100.gpu.sms


def test_more_sms_than_a_gpu_has_are_refused():
    with pytest.raises(InputError, match=r"exchange\.sms=200.*132 SMs"):
        sms_held("deepep_normal", {"sms": 200}, H100)
    nameless = dataclasses.replace(H100, gpu=dataclasses.replace(H100.gpu, sms=None))
    with pytest.raises(InputError, match=r"gpu\.sms"):
        sms_held("deepep_normal", {}, nameless)


@pytest.mark.parametrize("name", ["hybrid_ep", "deepep_v2"])
def test_nothing_is_copied_without_an_sm(name):
    with pytest.raises(InputError, match=r"exchange\.sms=0: it is copied by at least one SM"):
        equipped(name, {"sms": 0}, H100)
    assert equipped(name, {"sms": 1}, H100).capacity.min() > 0


def test_compute_with_fewer_sms_takes_longer():
    """With half of the SMs the tiles of large experts take twice as many waves; what only moves memory takes as long."""
    model = compose(["model=deepseek_v3"]).model
    whole, half = (timing.kernels(model, H100.gpu, sms_taken=taken) for taken in (0, 66))
    slots, gpu_of = np.full(32, 1024), np.zeros(32, np.int64)
    ratio = half.experts(slots, gpu_of, 1) / whole.experts(slots, gpu_of, 1)
    assert 1.5 < ratio < 2
