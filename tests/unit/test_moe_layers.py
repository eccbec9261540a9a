"""A Megatron MoE layer: its FLOPs bound it, a backward pass has twice as many, and what a case cannot mean is refused."""

import pytest

from clustersim.types import InputError
from clustersim.validation.exchanges import exchange
from clustersim.validation.machines import machine
from clustersim.validation.moe_layers import moe_layer

CASE = {
    "what": "moe_layer",
    "gpu": "h100_sxm",
    "gpus": 8,
    "gpus_per_node": 8,
    "nic": None,
    "exchange": "nccl_alltoall",
    "phase": "forward",
    "tokens_per_gpu": 4096,
    "hidden": 4096,
    "expert_ffn": 14336,
    "top_k": 2,
    "experts": 8,
    "dtype": "bf16",
    "gated": False,
    "shared_ffn": 0,
    "metric": "seconds",
}


def of(**changes):
    return moe_layer({**CASE, **changes})


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_layer_takes_its_two_exchanges_and_its_arithmetic_at_least(dtype):
    """tokens x top_k rows, two matrices, two FLOPs each, at the data sheet's peak; the exchanges carry BF16 in FP8 too."""
    gpu = machine({"gpu": "h100_sxm"}).gpu
    flops = 4096 * 2 * 2 * 2 * 4096 * 14336
    peak = gpu.bf16_flops if dtype == "bf16" else gpu.fp8_flops
    there = {
        key: CASE[key] for key in ("gpu", "gpus", "gpus_per_node", "exchange", "tokens_per_gpu", "hidden", "top_k", "experts")
    }
    sent = sum(
        exchange(
            {
                **there,
                "what": "exchange",
                "payload": "bf16",
                "routing": "uniform",
                "metric": "seconds",
                "statistic": "mean",
                "phase": p,
            }
        )
        for p in ("dispatch", "combine")
    )
    assert of(dtype=dtype) > flops / peak + sent
    assert of(dtype=dtype, phase="backward") > 2 * flops / peak + sent


def test_what_more_there_is_to_do_takes_longer():
    plain = of()
    assert of(gated=True) > 1.3 * plain, "a third matrix"
    assert of(shared_ffn=2048) > plain
    assert of(phase="backward") > 1.5 * plain
    assert of(dtype="fp8") < plain
    assert of(tokens_per_gpu=8192) > 1.8 * plain


def test_copies_that_travel_as_one_save_bytes_where_a_gpu_has_several_experts():
    many = {"hidden": 7168, "expert_ffn": 2048, "top_k": 8, "experts": 32}
    assert of(**many, exchange="deepep_normal") < of(**many)
    assert of(**many, exchange="hybrid_ep") > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"phase": "dispatch"}, "case.phase=dispatch: must be forward or backward"),
        ({"experts": 9}, "cannot be spread evenly"),
        ({"dtype": "fp4"}, "case.dtype=fp4"),
        ({"gated": "yes"}, "case.gated=yes: must be true or false"),
        ({"colour": 1}, "not in the vocabulary of moe_layer"),
        ({"expert_ffn": None}, "case.expert_ffn: is missing"),
        ({"exchange": "no_such"}, "there is no such exchange"),
        ({"gpu": "h20"}, "no topology has it"),
    ],
)
def test_what_a_layer_cannot_be_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        of(**change)
