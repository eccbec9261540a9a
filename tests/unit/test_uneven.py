"""Batches of different sizes: who has how many, that what is left chooses as it did, and what the slowest costs all."""

import numpy as np
import pytest

from clustersim import simulate
from clustersim.config import compose
from clustersim.types import InputError
from clustersim.workload.source import from_sampler
from clustersim.workload.uneven import Uneven, sizes_of, trimmed, with_prompts

RUN = [
    "model=deepseek_v3", "model.n_layers=5", "trace=sampled", "router=model", "topology.nodes=2", "memory=ignore",
    "network=bound",
]  # fmt: skip
DECODE = [*RUN, "workload=decode", "workload.context_spread=0", "exchange=deepep_low_latency", "trace.tokens=independent"]


def test_sizes_keep_the_sum_and_spread_as_asked():
    sizes = sizes_of(Uneven(batch_spread=0.3), 1000, 4000, seed=1)
    assert sizes.sum() == 4_000_000
    error = 0.3 * np.sqrt((1 + 4 * 0.3**2) / 2 / sizes.size) * 3        # of a lognormal deviation, three standard errors
    assert sizes.std() / 1000 == pytest.approx(0.3, abs=3 * error)
    assert (sizes == sizes_of(Uneven(batch_spread=0.3), 1000, 4000, seed=1)).all()
    assert (sizes_of(Uneven(), 7, 5, seed=0) == 7).all()


def test_what_is_left_of_a_batch_chooses_as_it_did():
    model = compose(["model=deepseek_v3", "model.n_layers=5"]).model
    whole = from_sampler(model, 4, 16, 0, sequence=4)
    sizes = np.array([16, 0, 3, 8])
    some = trimmed(whole, sizes)
    rows = np.concatenate([np.arange(16), 32 + np.arange(3), 48 + np.arange(8)])
    assert (np.bincount(some.source, minlength=4) == sizes).all()
    assert (some.choose(1).ids == whole.choose(1).ids[rows]).all()
    assert (some.context == whole.context[rows]).all()
    assert (some.scores(1, 14, 22) == whole.scores(1, 0, 64)[rows[14:22]]).all()
    assert (some.token_ids() == whole.token_ids()[rows]).all()
    assert (some.scores(1, 1000, 1004) == whole.scores(1, 1000, 1004)).all(), "later passes are as they were"


def test_prompts_are_as_long_as_asked_and_fill_the_batch():
    model = compose(["model=deepseek_v3", "model.n_layers=5"]).model
    made = with_prompts(from_sampler(model, 2, 200_000, 0, sequence=100), 100, 0.5, seed=3)
    begins = np.flatnonzero(made.context == 1)
    lengths = np.diff(begins)
    assert begins[0] == 0
    assert made.context[200_000] == 1
    assert lengths.mean() == pytest.approx(100, abs=4 * 50 / np.sqrt(lengths.size) + 0.5)
    assert lengths.std() / lengths.mean() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("schedule", ["in_order", "staggered"])
def test_the_gpu_with_most_paces_a_step(schedule):
    """As many sequences in all: where some have twice as many, a step takes longer, and no longer than were all as many."""
    even, most = ([*DECODE, f"schedule={schedule}", f"workload.tokens_per_gpu={n}"] for n in (32, 64))
    given = "workload.batches=[" + ",".join(["64", "16", "16", "32"] * 4) + "]"
    steps = [simulate(one).summary for one in (even, [*even, given], most)]
    assert steps[1]["tokens"] == steps[0]["tokens"] == 32 * 16
    assert steps[0]["step_s"] < steps[1]["step_s"] <= steps[2]["step_s"] * 1.001
    assert steps[1]["tokens_per_s"] == pytest.approx(32 * 16 / steps[1]["step_s"])


def test_padding_computes_the_rows_of_the_fullest_and_reads_the_caches_that_are_there():
    given = "workload.batches=[" + ",".join(["64", *["8"] * 15]) + "]"
    plain, padded = (simulate([*DECODE, given, f"workload.padded={value}"]).tables["gpus"] for value in ("false", "true"))
    full, small = (plain["gpu"] == gpu for gpu in (0, 1))
    for gpus in (plain, padded):
        assert (gpus.filter(small)["attention_s"].sum()) < gpus.filter(full)["attention_s"].sum()
    assert padded.filter(full)["attention_s"].sum() == pytest.approx(plain.filter(full)["attention_s"].sum())
    assert padded.filter(small)["attention_s"].sum() > plain.filter(small)["attention_s"].sum()


def test_drafts_stay_with_their_sequence():
    given = [*DECODE, "workload.draft=1", "workload.accepted=1.5", "workload.batches=[" + ",".join(["4", "12"] * 8) + "]"]
    summary = simulate(given).summary
    assert summary["tokens"] == 2 * 8 * 16
    assert summary["tokens_per_s"] == pytest.approx(1.5 * 8 * 16 / summary["step_s"])


def test_prefill_batches_differ_and_overlap():
    two = [*RUN, "workload.tokens_per_gpu=512", "schedule=two_batch", "exchange=deepep_normal"]
    made, even = simulate([*two, "workload.batch_spread=0.3"]), simulate(two)
    assert made.summary["tokens"] == even.summary["tokens"]
    assert made.summary["step_s"] > even.summary["step_s"]


@pytest.mark.parametrize(("given", "said"), [
    (["workload.batches=[1,2]"], "2 are given, and there are 16"),
    (["workload.batches=[1,-2]"], "must be whole numbers from 0 up"),
    (["workload.batches=3"], "must be a list of numbers"),
    (["workload.batch_spread=-1"], "workload.batch_spread=-1: must be a number from 0 up"),
    (["workload.batch_spread=0.1", "workload.batches=[1,2]"], "draws what workload.batches gives"),
    (["workload.prompt_spread=0.1", "workload.steps=2"], "use workload.steps=1"),
    (["workload.prompt_spread=0.1", "trace=tiny", "model=gpt_oss_20b", "router=recorded"], "has sequences of its own"),
    (["workload.batch_spread=0.1", "trace.counts=true", "router=recorded", "exchange=direct"], "trace.counts=true"),
    (["workload.batch_sprea=0.1"], "did you mean"),
])  # fmt: skip
def test_what_cannot_be_is_refused(given, said):
    base = RUN[2:] if "model=gpt_oss_20b" in given else RUN
    with pytest.raises(InputError) as refused:
        simulate([*base, *given])
    assert said in str(refused.value)
