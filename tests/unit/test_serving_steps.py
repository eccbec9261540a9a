"""Whole steps of serving in `validate`: cases become runs, layers that are not played are inferred, and what is wrong is said."""

import pytest

from clustersim import simulate
from clustersim.types import InputError
from clustersim.validation.notes import noting
from clustersim.validation.steps import step

PREFILL = {
    "what": "step", "statistic": "mean", "phase": "prefill", "model": "deepseek_v2_lite", "gpu": "h100_sxm", "gpus": 8,
    "tokens_per_gpu": 256, "sequence": 128, "load": "balanced", "exchange": "deepep_normal", "network": "bound",
}  # fmt: skip
DECODE = {
    "what": "step", "statistic": "mean", "phase": "decode", "model": "deepseek_v2_lite", "gpu": "h100_sxm", "gpus": 8,
    "batch": 16, "context": 1024, "load": "balanced", "draft": 1, "accepted": 1.5, "network": "bound", "shared": "hidden",
}  # fmt: skip


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_a_few_layers_stand_for_all(case):
    """26 MoE layers, of which 4 are played: evenly popular experts make all alike but for the luck of the tokens."""
    with noting() as said:
        few = step({**case, "metric": "seconds per step"})
    assert said == ["4 of 26 MoE layers were played; the others take what those between their ends take"]
    phase = [f"workload.tokens_per_gpu={case.get('tokens_per_gpu', case.get('batch'))}", "trace=sampled", "trace.preset=balanced"]
    if case is PREFILL:
        phase += ["trace.sequence=128", "exchange=deepep_normal"]
    else:
        phase = ["workload=decode", "workload.context=1024", "workload.context_spread=0", "workload.draft=1", *phase]
        phase += ["workload.accepted=1.5", "exchange=deepep_low_latency", "schedule.shared=hidden"]
    whole = simulate(["model=deepseek_v2_lite", "topology=h100_sxm", "topology.nodes=1", "network=bound", "router=model", *phase])
    assert few == pytest.approx(whole.summary["step_s"], rel=0.03)


def test_metrics_say_the_same_step():
    seconds = step({**DECODE, "metric": "seconds per step"})
    for metric, expected in {
        "seconds per layer": seconds / 27, "seconds per token": seconds / 1.5, "tokens/s/user": 1.5 / seconds,
        "tokens/s/GPU": 16 * 1.5 / seconds, "tokens/s/node": 8 * 16 * 1.5 / seconds, "tokens/s": 8 * 16 * 1.5 / seconds,
    }.items():  # fmt: skip
        assert step({**DECODE, "metric": metric}) == pytest.approx(expected, rel=1e-12)
    seconds = step({**PREFILL, "metric": "seconds per step"})
    assert step({**PREFILL, "metric": "tokens/s/GPU"}) == pytest.approx(256 / seconds, rel=1e-12)


def test_tensor_groups_step_as_the_engine_plays_them():
    """Two groups of four decode 16 sequences each: 32 in all, a step as long as that of the same config."""
    case = {**DECODE, "model": "llama_3_2_1b", "batch": 16, "tensor": 4, "draft": 0, "accepted": 1.0}
    for key in ("load", "shared"):
        case.pop(key)
    whole = simulate([
        "model=llama_3_2_1b", "topology=h100_sxm", "topology.nodes=1", "network=bound", "workload=decode", "trace=balanced",
        "workload.context=1024", "workload.context_spread=0", "workload.tokens_per_gpu=4", "parallel.tensor=4",
    ]).summary  # fmt: skip
    assert step({**case, "metric": "seconds per step"}) == pytest.approx(whole["step_s"], rel=1e-9)
    assert step({**case, "metric": "tokens/s/GPU"}) == pytest.approx(32 / whole["step_s"] / 8, rel=1e-9)
    assert whole["tokens"] == 32


def test_a_dense_model_steps_too():
    case = {key: value for key, value in PREFILL.items() if key not in ("exchange", "load")}
    assert step({**case, "model": "llama_3_2_1b", "gpus": 1, "metric": "tokens/s/GPU"}) > 0


@pytest.mark.parametrize(("base", "change", "said"), [
    (PREFILL, {"metric": "tokens/s/gpu"}, "case.metric=tokens/s/gpu: must be one of"),
    (PREFILL, {"batch": 4}, "case.batch: belongs to phase decode"), (DECODE, {"tokens_per_gpu": 4}, "belongs to phase prefill"),
    (DECODE, {"context": None}, "case.context: is missing"), (PREFILL, {"model": "deepseek_v33"}, "did you mean deepseek_v3?"),
    (PREFILL, {"pipeline": 2}, "case.pipeline=2: serving shares attention (tensor), spreads experts over all 8 GPUs"),
    (PREFILL, {"tensor": 3}, "parallel.tensor=3: does not divide 8 GPUs"),
    (PREFILL, {"phase": "prefil"}, "did you mean prefill?"), (PREFILL, {"shedule": "in_order"}, "did you mean schedule?"),
    (PREFILL, {"schedule": "two_bach"}, "did you mean two_batch?"),
    (PREFILL, {"metric": "tokens/s/user"}, "belongs to phase decode"),
    (PREFILL, {"dtype": "fp7"}, "case.dtype=fp7: must be one of"),
])  # fmt: skip
def test_what_is_wrong_with_a_case_is_said(base, change, said):
    with pytest.raises(InputError) as refused:
        step({**base, **change})
    assert said in str(refused.value)
