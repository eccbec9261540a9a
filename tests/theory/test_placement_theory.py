"""What redundant experts do to a load: TensorRT-LLM's imbalance of DeepSeek-R1 at EP32, as far as statistics explain it."""

import numpy as np
import pytest

from clustersim.types import Trace
from tests.imbalance import (
    FAMILIES,
    LAYERS,
    PUBLISHED,
    TOKENS,
    TOP_K,
    UNEVEN,
    batch,
    drift_of,
    drifted,
    excess,
    expected_loads,
    inclusion,
    left_over,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_288_slots_level_the_expected_load_and_leave_what_chance_makes_of_a_batch(family):
    """On the load itself 0.003 ± 0.005 is left; on batches of 1,024 choices per GPU 0.056 ± 0.01, replicas sharing equally.

    The largest of 32 nearly normal loads of standard deviation 1/sqrt(1024) is 2.07 of them above the mean: 0.065 if choices
    were independent, less because a token's choices exclude each other.
    """
    p = expected_loads(family)
    assert excess(p.reshape(LAYERS, 32, -1).sum(axis=2)).mean() == pytest.approx(UNEVEN, abs=0.01)
    assert left_over(p, sampled=False).mean() == pytest.approx(0.003, abs=0.005)
    assert left_over(p, every=6).mean() == pytest.approx(0.056, abs=0.01)
    # GPT-OSS-20B's loads change by 0.106 from decode steps 64-127 to 192-255 of an answer (`python -m tests.bench.placement
    # --drift FOLDER`); with a drift like that the published number is met
    assert left_over(p, every=2, drift=0.106).mean() == pytest.approx(PUBLISHED, abs=0.03)


def test_every_token_of_a_batch_makes_all_its_choices():
    assert batch(np.random.default_rng(0), expected_loads("lognormal")[0]).sum() == TOKENS * TOP_K


def test_a_drift_is_as_large_as_asked_and_found_again_in_a_trace():
    """Two layers, 600 sequences, whose second halves follow drifted loads: 0.3 comes back without the noise of counting.

    The noise of an expert's share p in 19,200 choices has variance p / 19,200, so that the sum of squared changes, 0.09 of the
    sum of p^2, is off by 2 * 0.3 * sqrt(2 / 19,200 / (2 * 32 * sum of p^2)), some thousandths.
    """
    rng = np.random.default_rng(3)
    p = inclusion(rng.gamma(2.0, size=32))
    later = drifted(rng, p, 0.3)
    assert np.sqrt(((later - p) ** 2).sum() / (p**2).sum()) == pytest.approx(0.3, abs=1e-6)
    length, sequences = 64, 600
    pos = np.tile(np.arange(length), sequences)
    ids = np.empty((pos.size, 2, 1), np.int16)
    for part, load in ((pos < length // 2, p), (pos >= length // 2, later)):
        ids[part] = rng.choice(32, size=(part.sum(), 2, 1), p=load / load.sum())
    zero = np.zeros(pos.size, np.int64)
    trace = Trace(
        expert_ids=ids, gate_weights=None, step=zero, rank=zero, seq=np.repeat(np.arange(sequences), length), pos=pos,
        phase=zero.astype(np.uint8), n_experts=32,
    )
    found = drift_of(trace)
    assert found["halves of a sequence"] == pytest.approx(0.3, abs=0.02)
    assert "steps 64-127 and 192-255" not in found, "no sequence is that long"
