"""GEMMs and experts of `clustersim validate`: within their bars, and clear about what cannot be simulated."""

import pytest

from clustersim.types import InputError
from clustersim.validation import rows, scoring
from clustersim.validation.gemms import expert_compute, gemm

GEMM = {"what": "gemm", "gpu": "h800_sxm", "dtype": "fp8", "m": 64, "n": 4096, "k": 7168}
EXPERTS = {
    "what": "expert_compute", "gpu": "h100_sxm", "gpus": 8, "phase": "decode", "tokens": 64, "hidden": 7168, "expert_ffn": 2048,
    "top_k": 8, "experts": 256, "dtype": "fp8", "load": "uniform",
}  # fmt: skip


def test_deepgemm_and_expert_compute_stay_within_their_bars():
    scored = scoring.score(row for row in rows.published() if row.group in ("V8", "V9"))
    assert len(scored) == 22 + 53
    for verdict in scoring.verdicts(scored):
        assert verdict.ok, verdict


def test_flops_and_seconds_are_two_views_of_one_time():
    rate = gemm({**GEMM, "metric": "FLOP/s, over the time"})
    assert rate * gemm(GEMM) == pytest.approx(2 * 64 * 4096 * 7168, rel=1e-12)


def test_the_words_and_numbers_of_a_load():
    """64 tokens, 8 choices, 8 ranks: 64 choices on a rank of 32 experts, 2 each; twice the mean 4 each; or as listed."""
    even, twice = expert_compute(EXPERTS), expert_compute({**EXPERTS, "load": 2.0})
    assert expert_compute({**EXPERTS, "load": None, "expert_tokens": [2] * 32}) == even
    assert expert_compute({**EXPERTS, "load": None, "expert_tokens": [4] * 32}) == twice > even
    one = expert_compute({**EXPERTS, "load": None, "expert_tokens": [64]})
    assert one < even / 10, "31 experts without a token are not read"


def test_tokens_that_arrive_are_fewer_than_those_of_the_group():
    prefill = {**EXPERTS, "phase": "prefill", "tokens": 32768}
    group, arrived = expert_compute(prefill), expert_compute({**prefill, "through": "arrived"})
    away = 32768.0
    for i in range(8):                          # no choice among the rank's 32 of 256: drawn without replacement
        away *= (224 - i) / (256 - i)
    assert group - arrived == pytest.approx(away * 7168 * (1 + 4 / 128 + 2) / 2.68e12, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (gemm, {"dtype": "fp6"}, "case.dtype=fp6: must be one of bf16, fp8, mxfp8, fp4"),
        (gemm, {"m": 0}, "case.m=0: must be a whole number from 1 up"),
        (gemm, {"k": None}, "case.k: is missing"),
        (gemm, {"groups": 4}, "case.groups=4: a dense GEMM has one"),
        (gemm, {"mm": 3}, "case.mm: is not in the vocabulary of gemm"),
        (gemm, {"gpu": "h101"}, "case.gpu=h101: no topology has it"),
        (gemm, {"kernel": "deepgemm_2025_03"}, "did you mean deepgemm_2025_0"),
        (expert_compute, {"gpus": 7}, "case.gpus=7: must divide the 256 experts"),
        (expert_compute, {"load": "power_law_1.2"}, "case.load=power_law_1.2: does not say what the busiest rank gets"),
        (expert_compute, {"load": 9}, "case.load=9"),
        (expert_compute, {"expert_tokens": [1.5]}, "case.expert_tokens=[1.5]: must be whole numbers"),
        (expert_compute, {"phase": "training"}, "case.phase=training: must be one of prefill, decode"),
    ],
)
def test_what_cannot_be_simulated_says_why(kind, change, said):
    with pytest.raises(InputError) as refused:
        kind({**(GEMM if kind is gemm else EXPERTS), **change})
    assert said in str(refused.value)
