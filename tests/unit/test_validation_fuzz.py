"""Whatever a row's case asks for, it is simulated to a finite number or listed with a reason of one line: never an exception."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim import exchange as exchanges
from clustersim.exchange.payloads import PAYLOADS
from clustersim.exchange.software import EQUIPMENT
from clustersim.validation import scoring
from clustersim.validation.machines import TOPOLOGIES
from clustersim.validation.rows import published, row_from

NONSENSE = (None, 0, -1, 1.5, True, "many", "", [], {}, math.nan, 10**12)
WORDS = {
    "gpu": (*TOPOLOGIES, "h20", "mi300x", "l40s", "H100", "gb200-nvl4"),
    "gpus": (1, 2, 3, 4, 8, 12, 16, 32, 72, 144),
    "gpus_per_node": (1, 4, 8, 16, 72),
    "nic": ("400Gb/s per GPU", "800Gb/s per GPU", "200Gb/s", "50 GB/s", "8x400G", "EFA"),
    "exchange": (*exchanges.__all__, "pplx", "uccl", "hybridep", "nccl"),
    "phase": ("dispatch", "combine", "dispatch+combine", "prefill", "decode", "forward", "backward"),
    "tokens_per_gpu": (0, 1, 7, 128, 129),
    "hidden": (128, 2048, 2880, 7168, 7169),
    "top_k": (1, 2, 8, 9, 300),
    "experts": (8, 32, 64, 256, 257, 288),
    "payload": (*PAYLOADS, "fp8_e4m3", "int8", "BF16"),
    "routing": (
        "uniform",
        "balanced",
        "uniform scores, best 4 of 8 nodes by maximum",
        "uniform scores, best 9 of 8 nodes by maximum",
        "power law 1.2",
        "random",
    ),
    "sms": (0, 1, 2, 4, 20, 24, 31, 64, 132, 148, 200),
    "bytes_per_gpu": (1, 1024, 1 << 20, 1 << 33),
    "kernel": ("deepep_v1", "nccl", "no_such"),
    "metric": ("seconds", "seconds of transmission, notify apart", "bytes/s, own copies counted", "busbw", "us"),
    "statistic": ("mean", "max", "rank0", "p99"),
    "dtype": ("bf16", "fp8", "mxfp8", "fp4", "nvfp4", "int8", "fp16"),
    "m": (1, 7, 64, 128, 4096, 8192),
    "n": (1, 576, 2112, 7168, 32768),
    "k": (1, 128, 512, 16384),
    "groups": (1, 2, 4, 256),
    "layout": ("dense", "contig", "masked", "ragged"),
    "tokens": (1, 128, 4096, 262144),
    "expert_ffn": (1, 768, 2048, 14336),
    "load": ("uniform", "power_law_1.2", 0.5, 1, 1.5, 64),
    "through": ("group", "arrived", "neither"),
    "buffer_tokens": (1, 128),
    "expert_tokens": ([1, 2, 3], [0], [-1]),
    "colour": ("red",),
    "gated": (True, False, "yes"),
    "shared_ffn": (0, 2048, -1),
}
WORDS |= {"uneven": (0.1, 1.564, 40, "much"), "slots": (256, 288, 320, 300), "drift": (0, 0.105, 3.0)}
KINDS = {
    "imbalance": ("gpus", "experts", "top_k", "tokens_per_gpu", "uneven", "slots", "drift"),
    "exchange": (
        "gpu",
        "gpus",
        "gpus_per_node",
        "nic",
        "exchange",
        "phase",
        "tokens_per_gpu",
        "hidden",
        "top_k",
        "experts",
        "payload",
        "routing",
        "sms",
        "bytes_per_gpu",
        "kernel",
        "metric",
        "statistic",
    ),
    "gemm": ("gpu", "dtype", "m", "n", "k", "groups", "layout", "kernel", "metric"),
    "expert_compute": (
        "gpu",
        "gpus",
        "phase",
        "tokens",
        "hidden",
        "expert_ffn",
        "top_k",
        "experts",
        "dtype",
        "load",
        "through",
        "buffer_tokens",
        "expert_tokens",
    ),
    "moe_layer": (
        "gpu",
        "gpus",
        "gpus_per_node",
        "nic",
        "exchange",
        "phase",
        "tokens_per_gpu",
        "hidden",
        "expert_ffn",
        "top_k",
        "experts",
        "dtype",
        "gated",
        "shared_ffn",
        "sms",
    ),
}


def likely(key):
    return st.sampled_from(WORDS[key])


@st.composite
def cases(draw):
    """A case in which most keys are words of the vocabulary, up to two of them nonsense, and up to two not there."""
    what = draw(st.sampled_from(tuple(KINDS)))
    case = {"what": what, **{key: draw(likely(key)) for key in KINDS[what]}}
    if what == "exchange" and draw(st.booleans()):  # leave what most rows leave, so that many are simulated
        case = sensible() | {key: case[key] for key in draw(st.lists(st.sampled_from(KINDS[what]), max_size=3))}
    for key in draw(st.lists(st.sampled_from((*KINDS[what], "colour")), max_size=2)):
        case[key] = draw(st.sampled_from(NONSENSE))
    for key in draw(st.lists(st.sampled_from(KINDS[what]), max_size=2)):
        case.pop(key, None)
    return case


def sensible():
    return {
        "what": "exchange",
        "gpu": "h100_sxm",
        "gpus": 8,
        "gpus_per_node": 8,
        "nic": None,
        "exchange": "deepep_low_latency",
        "phase": "dispatch",
        "tokens_per_gpu": 16,
        "hidden": 7168,
        "top_k": 8,
        "experts": 256,
        "payload": "fp8_block128",
        "routing": "uniform",
        "metric": "seconds",
    }


def scored(case):
    (one,) = scoring.score([row_from({"id": "mine", "value": 20.0, "unit": "us", "case": case}, "here")])
    return one


def check(case):
    one = scored(case)
    if one.modelled:
        assert math.isfinite(one.error), case
        assert one.simulated > 0, case
    else:
        assert one.reason, case
        assert "\n" not in one.reason, case


@settings(max_examples=120, deadline=None)
@given(case=cases())
def test_any_case_is_simulated_or_has_a_reason(case):
    check(case)


@pytest.mark.parametrize("name", exchanges.__all__)
@pytest.mark.parametrize("gpu", ["h100_sxm", "gb200"])
def test_every_exchange_is_simulated_on_every_kind_of_machine_or_says_why_not(name, gpu):
    for phase in ("dispatch", "combine"):
        for gpus in (4, 16):
            one = scored({**sensible(), "exchange": name, "phase": phase, "gpu": gpu, "gpus": gpus, "gpus_per_node": None})
            assert one.modelled or "node" in one.reason, (name, one.reason)


@pytest.mark.parametrize("gpu", sorted(TOPOLOGIES))
def test_every_gpu_of_the_table_has_exchanges_gemms_and_experts(gpu):
    for case in (
        {**sensible(), "gpu": gpu, "gpus": 4, "gpus_per_node": None},
        {**sensible(), "gpu": gpu, "exchange": "deepep_normal", "sms": 20},
        {"what": "gemm", "gpu": gpu, "dtype": "bf16", "m": 4096, "n": 7168, "k": 2048},
        {
            "what": "expert_compute",
            "gpu": gpu,
            "gpus": 8,
            "phase": "decode",
            "tokens": 128,
            "hidden": 7168,
            "expert_ffn": 2048,
            "top_k": 8,
            "experts": 256,
            "dtype": "bf16",
        },
        {"what": "exchange", "exchange": "nccl_alltoall", "gpu": gpu, "gpus": 8, "bytes_per_gpu": 1 << 24, "metric": "seconds"},
    ):
        one = scored(case)
        assert one.modelled, (case, one.reason)


def test_rows_of_the_table_with_one_key_changed_are_simulated_or_have_a_reason():
    """Neighbours of what is there, in every key of every group's first row."""
    seen = {}
    for row in published():
        seen.setdefault(row.group, row)
    for row in seen.values():
        if row.case["what"] not in KINDS:
            continue
        for key in KINDS[row.case["what"]]:
            case = dict(row.case)
            case["gpus"] = min(case.get("gpus", 8), 16)
            case["tokens_per_gpu"] = 256 if "tokens_per_gpu" in case else None  # one draw on 8 GPUs
            for value in WORDS[key][:4:2]:
                check(json.loads(json.dumps({k: v for k, v in {**case, key: value}.items() if v is not None})))


def test_constants_of_every_kernel_take_any_number_of_gpus_that_fit():
    for name in EQUIPMENT:
        for gpus in (2, 8, 64):
            check({**sensible(), "exchange": name, "gpus": gpus, "tokens_per_gpu": 8})
