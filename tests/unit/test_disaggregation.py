"""Prefill and decoding apart: rates of either side, caches on the wires, and what a prompt in pieces looks back at."""

import json

import numpy as np
import polars as pl
import pytest

import clustersim as cs
from clustersim.cli import main
from clustersim.disaggregation import caches
from clustersim.types import InputError

SIDE = ["model=llama_3_2_1b", "topology=ideal_rail", "network=bound", "trace=balanced", "compute=roofline"]


def served(prompt=2048, output=512, prefill=(), decode=()):
    before = [*SIDE, "topology.nodes=1", "workload.tokens_per_gpu=4096", *prefill]
    then = [*SIDE, "topology.nodes=2", "workload.tokens_per_gpu=32", "workload.context_spread=0", *decode]
    return cs.disaggregated(before, then, prompt=prompt, output=output)


def test_each_side_serves_its_tokens_and_the_slowest_limits():
    found = served()
    prefill = cs.simulate([*SIDE, "topology.nodes=1", "workload.tokens_per_gpu=4096", "trace.sequence=2048"]).summary
    decode = cs.simulate([
        *SIDE, "topology.nodes=2", "workload=decode", "workload.tokens_per_gpu=32", "workload.context_spread=0",
        "workload.context=2304",
    ]).summary  # fmt: skip
    assert found.prefill_rate == pytest.approx(prefill["tokens_per_s"] / 2048, rel=1e-12)
    assert found.decode_rate == pytest.approx(decode["tokens_per_s"] / 512, rel=1e-12)
    assert found.rate == min(found.prefill_rate, found.transfer_rate, found.decode_rate)
    assert found.limit == "decode"
    assert found.nodes_to_match == pytest.approx((found.decode_rate / 2) / found.prefill_rate, rel=1e-12)
    assert found.per_token_s == pytest.approx(decode["step_s"], rel=1e-12)
    assert found.first_token_s == pytest.approx(prefill["step_s"] + found.transfer_s, rel=1e-12)


def test_caches_cross_the_network_once():
    """16 layers x 2 x 8 heads x 64 values x 2 B are 32,768 B a token; 2 prompts of 2,048 leave each of 8 GPUs at 50 GB/s."""
    found = served()
    assert found.cache_bytes == 2048 * 32768
    assert found.transfer_s == pytest.approx(2 * 2048 * 32768 / 50e9, rel=1e-9)
    assert found.transfer_rate == pytest.approx(16 / found.transfer_s, rel=1e-12)


@pytest.mark.parametrize(("sources", "targets"), [(8, 16), (16, 8), (6, 4), (3, 3)])
def test_every_gpu_sends_all_and_gets_as_much_as_any_other(sources, targets):
    sent = caches(sources, targets, 12.0)
    np.testing.assert_allclose(np.bincount(sent.src, sent.nbytes), 12.0)
    taken = np.bincount(sent.dst, sent.nbytes)
    assert not taken[:sources].any()
    np.testing.assert_allclose(taken[sources:], 12.0 * sources / targets)


def test_a_prompt_in_pieces_looks_back_at_the_pieces_before():
    """4,096 tokens in one pass or in four of 1,024: the same pairs of tokens, sum over the prompt 4096 x 4097 / 2."""
    ask = [*SIDE, "topology.nodes=1", "topology.gpus_per_node=1", "trace.sequence=4096"]
    whole = cs.simulate([*ask, "workload.tokens_per_gpu=4096"]).tables["gpus"].filter(layer=1)["attention_s"].sum()
    pieces = cs.simulate([*ask, "workload.tokens_per_gpu=1024", "workload.steps=4"]).tables["gpus"].filter(layer=1)["attention_s"]
    assert pieces.sum() == pytest.approx(whole, rel=1e-9)
    each = 4 * 32 * 64 * 1024 * 1024 / 989.4e12         # a piece has 1024 x 1024 pairs more than the one before
    np.testing.assert_allclose(np.diff(pieces.to_numpy()), each, rtol=1e-3)
    apart = served(prompt=8192, prefill=["workload.tokens_per_gpu=2048"])
    assert apart.prefill.summary["steps"] == 4


def test_sides_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match=r"^model=qwen3_4b: decoding goes on with what model=llama_3_2_1b has prefilled"):
        served(decode=["model=qwen3_4b"])
    with pytest.raises(InputError, match=r"^prompt=0: must be a whole number from 1 up"):
        served(prompt=0)


def test_groups_of_gpus_send_their_parts_of_the_caches():
    """Two GPUs that share attention have one batch and half of each cache: as many requests and bytes from each as before."""
    alone, shared = served(), served(prefill=["parallel.tensor=2"])
    assert shared.cache_bytes == alone.cache_bytes
    assert shared.transfer_s == pytest.approx(alone.transfer_s, rel=1e-12)
    assert shared.prefill_rate == pytest.approx(16 / shared.prefill.summary["step_s"], rel=1e-12)


def test_caches_take_their_share_of_the_nics():
    """At the rate that all keep up with 67 MB a request leave 8 NICs of 50 GB/s, and come to 16."""
    found = served()
    share = found.rate * 2048 * 32768 / (8 * 50e9)
    assert found.nic_shares == pytest.approx((share, share / 2), rel=1e-9)


def test_the_command_compares_all_combinations(tmp_path, capsys):
    asked = ["prompt=256", "output=64,128", *SIDE, "topology.nodes=1", "prefill.workload.tokens_per_gpu=512",
             "decode.workload.tokens_per_gpu=8", "decode.parallel.tensor=1,2"]  # fmt: skip
    with pytest.MonkeyPatch.context() as here:
        here.chdir(tmp_path)
        assert main(["disaggregate", *asked, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [(row["output"], row["decode.parallel.tensor"]) for row in told["rows"]] == [
            (64, "1"), (64, "2"), (128, "1"), (128, "2"),
        ]  # fmt: skip
        written = pl.read_parquet(told["file"])
        assert written["requests_per_s"].to_list() == [row["requests_per_s"] for row in told["rows"]]
        assert cs.scan("results/runs").collect()["run_id"].n_unique() == written.select(
            pl.concat_list("prefill_run", "decode_run").explode().n_unique()
        ).item()
        assert main(["disaggregate", *asked]) == 0
    assert "requests/s" in capsys.readouterr().out
