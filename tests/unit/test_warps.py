"""What DeepEP's normal kernels take of the SMs of one node: steps, flags and chunks, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from clustersim import load_cluster
from clustersim.exchange.warps import copying
from clustersim.kernels import load_kernel, trying
from clustersim.validation.rows import row_from
from clustersim.validation.scoring import score

KERNEL = load_kernel("deepep_v1")
WAIT, TRIP = KERNEL["wait"], 4 * 936.25e-9
H100, B300 = (load_cluster(name, nodes=1).gpu for name in ("h100_sxm", "b300_hgx"))
MANY, FEW = 1e6, 100            # tokens of a GPU: with many nothing stays in the L2


def busy(phase, token_bytes, each, tokens=MANY, gpus=8, gpu=H100, **tried):
    """A channel of every GPU sends `each` tokens to every GPU."""
    cluster = SimpleNamespace(n_gpus=gpus, gpu=gpu)
    with trying({f"deepep_v1.{key}": value for key, value in tried.items()}):
        kernel = load_kernel("deepep_v1")
    return copying(phase, token_bytes, 7168, np.full((gpus, 1, gpus), each), np.full(gpus, tokens), cluster, kernel)


def test_a_dispatched_token_is_three_steps_and_its_scales_and_chunks_are_as_long_as_is_best():
    """7,168 bytes are 14 rows, so 5 + 5 + 4 before a store; 56 scales are two loads, on their way together. 24 warps share
    the port. Each of 3 warps for a GPU copies 10 of 30 tokens. Two chunks of 5 rounds: one more flag than one of 10, but only
    half as much to take in at the end; 4 rounds would be three chunks, for one round less."""
    token = 4 * WAIT + 24 * 7168 / (11.3e12 / 132)
    one = (4 + 56 / 32 / 4) * WAIT
    assert 4 * one < TRIP + 5 * one < min(10 * one, 2 * TRIP + 4 * one)
    found = busy("dispatch", 7392.0, 30)
    assert found.sending == pytest.approx(np.full(8, 10 * token + TRIP))
    assert found.after == pytest.approx(5 * one)
    assert not found.summing.any()


def test_a_combine_stores_after_four_rows_and_sums_with_all_warps_but_one():
    """14,336 bytes are 28 rows, seven steps. 15 tokens are five rounds of 3 warps, one chunk of up to 16. 23 of 24 warps sum."""
    found = busy("combine", 14336.0, 15, tokens=69_000)
    one = 28 * 0.42 * WAIT
    assert found.sending == pytest.approx(np.full(8, 5 * (7 * WAIT + 24 * 14336 / (11.3e12 / 132))))
    assert found.summing == pytest.approx(np.full(8, 3000 * one))
    assert found.after == pytest.approx(one)


def test_among_4_gpus_twice_the_warps_serve_each_and_chunks_have_half_the_rounds():
    """60 tokens: 20 rounds of 3 warps in chunks of at most 5, so 3 flags; 10 rounds of 6 warps in chunks of 2, so 4."""
    eight, four = (busy("combine", 14336.0, 60, gpus=gpus).sending[0] for gpus in (8, 4))
    assert eight - 2 * four == pytest.approx((3 - 2 * 4) * TRIP)


def test_what_waits_for_memory_waits_as_long_as_memory_takes():
    """Without anything but waiting, B300's 457 ns against the 377 ns of the GPU that `wait` was found on."""

    def waits(gpu, port):
        return busy("combine", 14336.0, 15, gpu=gpu, flag=1e-15).sending[0] - 5 * 24 * 14336 / port

    assert waits(B300, 22.5e12 / 148) / waits(H100, 11.3e12 / 132) == pytest.approx(457 / 377)


def test_scales_follow_one_another_on_blackwell():
    """A token without scales is one wait shorter on Hopper, two on Blackwell, where taking in costs nothing."""
    for gpu, waits, latency in ((H100, 1, 377), (B300, 2, 457)):
        with_scales, without = (
            busy("dispatch", size, 3, gpu=gpu, taking=1e-9, polls=1e-9).sending[0] for size in (7392.0, 7168.0)
        )  # fmt: skip
        assert with_scales - without == pytest.approx(waits * WAIT * latency / 377)


def test_a_batch_that_the_l2_holds_waits_for_the_l2():
    """One round of one token: four waits and the port, and of each wait 0.42."""
    port = 24 * 7168 / (11.3e12 / 132)
    long, short = (busy("dispatch", 7392.0, 3, tokens=tokens).sending[0] - port for tokens in (MANY, FEW))
    assert short / long == pytest.approx(0.42)


def test_nobody_sends_nothing():
    assert not busy("dispatch", 7392.0, 0).sending.any()
    assert not busy("combine", 14336.0, 0, tokens=0).summing.any()


def test_twice_the_sms_take_half_as_long_where_nothing_else_holds():
    """Less than half would be a mistake; more is the launch, the largest share of a channel and the last chunk."""
    case = {
        "what": "exchange", "gpu": "b300", "gpus": 8, "gpus_per_node": 8, "nic": None, "exchange": "deepep_normal",
        "phase": "combine", "tokens_per_gpu": 4096, "hidden": 7168, "top_k": 8, "experts": 256, "payload": "bf16",
        "routing": "uniform", "metric": "seconds, notify apart",
    }  # fmt: skip
    rows = [row_from({"id": str(n), "value": 1.0, "unit": "s", "case": {**case, "sms": n}}, "here") for n in (4, 8, 16)]
    four, eight, sixteen = (one.simulated for one in score(rows))
    assert 0.5 < eight / four < 0.55
    assert 0.5 < sixteen / eight < 0.58
