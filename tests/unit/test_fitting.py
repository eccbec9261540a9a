"""Whether a run fits is known before it is played: what it is refused with, and what is written of one that is played."""

import numpy as np
import pytest

import clustersim as cs
from clustersim.assembling import assemble
from clustersim.config import compose
from clustersim.results.footprint import memory_line
from clustersim.types import InputError

SMALL = ["topology.nodes=1", "model.n_layers=2", "network=bound", "compute=none", "workload.tokens_per_gpu=16"]
DECODING = ["workload=decode", "trace=sampled", "workload.tokens_per_gpu=64", "workload.context=2048"]


def test_deepseek_v3_does_not_fit_on_a_node_of_h800_and_does_on_one_of_h200():
    # arXiv 2412.19437: 671 billion parameters in FP8; attention, dense layers and tables are whole on every GPU
    with pytest.raises(InputError) as caught:
        assemble(compose(["model=deepseek_v3", "topology=h800_sxm", "topology.nodes=1", "trace=sampled"]))
    said = str(caught.value)
    assert said.startswith("memory: deepseek_v3 does not fit on 8 GPUs of h800_sxm: a GPU has 80.0 GB and needs 99.")
    assert "would fit: 16 GPUs (" in said
    assert said.endswith("; memory=ignore plays it all the same")
    assert "\n" not in said
    assemble(compose(["model=deepseek_v3", "topology=h200_sxm", "topology.nodes=1", "trace=sampled"]))


def test_memory_ignore_plays_what_does_not_fit_and_says_so():
    small = [*SMALL, "topology.gpu.memory=100 MB"]
    with pytest.raises(InputError, match="memory: gpt_oss_20b does not fit on 8 GPUs of h100_sxm"):
        cs.simulate(small)
    played, usual = cs.simulate([*small, "memory=ignore"]), cs.simulate(SMALL)
    assert played.summary["step_s"] == usual.summary["step_s"]
    assert played.summary["memory_bytes"] == usual.summary["memory_bytes"] > played.summary["gpu_memory_bytes"] == 1e8
    assert "of 100 MB, which does not fit: weights " in memory_line(played.summary, played.tables["memory"])
    with pytest.raises(InputError, match="memory=ignor: must be check or ignore; did you mean ignore"):
        compose(["memory=ignor"])


def test_the_table_sums_to_the_summary():
    result = cs.simulate(SMALL)
    assert result.tables["memory"]["held_bytes"].sum() == result.summary["memory_bytes"] <= result.summary["gpu_memory_bytes"]


def test_decoding_holds_the_contexts_of_the_fullest_gpu():
    # GPT-OSS-20B keeps 2 x 8 heads x 64 values per token; every second layer sees 128 tokens
    parts = assemble(compose([*SMALL[:3], *DECODING]))
    per_token = 2 * 8 * 64 * 2.0
    own = np.bincount(parts.workload.source, weights=parts.workload.context, minlength=8).max() / 64
    assert parts.memory.parts["cache"] == pytest.approx(64 * per_token * (np.ceil(own) + 128))


def test_more_experts_on_a_gpu_need_more_memory():
    one, two = (assemble(compose([*SMALL[:3], f"placement.slots={slots}"])).memory.parts["weights"] for slots in (32, 64))
    assert two - one == pytest.approx(2 * 4 * 3 * 2880 * 2880 * 4.25 / 8)       # 2 layers, 4 more slots, MXFP4


def test_the_page_of_a_run_says_what_its_gpus_hold(tmp_path):
    from clustersim.report.make import write_report

    result = cs.simulate([*SMALL, f"output={tmp_path}"])
    result.save()
    write_report(result.folder)
    page = (result.folder / "report.html").read_text()
    assert "memory of the fullest GPU: " in page
    assert "of 80.0 GB: weights " in page
