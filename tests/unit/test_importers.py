"""Each importer on files of the real writer, or made byte by byte after its source: exact ids, counts, ranks; weights to float16.

Which it is stands in the first line of each test: "library" means that the file was written by the library that the system itself
calls (tests/importer_files.py), "specification" that the test writes it as the system's source says.
"""

import base64
import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clustersim.cli import main
from clustersim.importers import (
    deepseek_eplb,
    flame_moe,
    hf_router_logits,
    llama_imatrix,
    megatron,
    moe_balance,
    moe_infinity,
    moetrace,
    sglang_per_pass,
    sglang_per_token,
    sglang_routed_experts,
    sglang_stat,
    table,
    tensorrt_llm,
    vllm_eplb,
    vllm_moe_log,
    vllm_routed_experts,
)
from clustersim.importers.building import tokens_from
from clustersim.importers.recognition import detect
from clustersim.importers.torch_file import read_pt
from clustersim.types import InputError
from clustersim.workload.trace import read_trace, write_trace
from clustersim.workload.trace_counts import read_count_rows
from clustersim.workload.trace_rules import PADDING
from tests import importer_files as files
from tests.importer_files import DATA, EXPERTS, LAYERS, MAP, TOP_K, choices, megatron_lines, npy_base64, write_lines
from tests.unit.test_trace import made_up


def test_a_file_of_torch_save_is_read_without_torch():
    """Library (torch.save): transposed views, bfloat16, empty tensors, bool, nested lists, dicts, tuples, large numbers."""
    found = read_pt(DATA / "kinds.pt")
    np.testing.assert_array_equal(found["half"], np.arange(6, dtype=np.float16).reshape(2, 3).T)
    np.testing.assert_array_equal(found["brain"], np.float32([1.5, -2.0]))
    assert found["none"].shape == (0, 3)
    assert found["shape"] == (2, 3)
    assert found["yes"].tolist() == [True, False]
    assert found["deep"] == [{"a": (1, 2.5, "x", None, True, 2**40)}]


class Hostile:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(tmp_path, protocol):
    trap = tmp_path / "sprung"
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"records": [Hostile(trap)]}, protocol))
    with pytest.raises(InputError, match=r"x\.pt: refused: its pickle asks for") as refused:
        read_pt(tmp_path / "x.pt")
    assert "\n" not in str(refused.value)
    assert not trap.exists()


def test_a_whole_model_is_refused():
    """Library (torch.save of an nn.Module): it names classes, which are not looked up."""
    with pytest.raises(InputError, match=r"module\.pt: refused: its pickle asks for torch\.nn"):
        read_pt(DATA / "module.pt")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    """Specification: the strides of a stored tensor are changed to reach outside of its bytes."""
    with zipfile.ZipFile(DATA / "sglang_stat.pt") as archive, zipfile.ZipFile(tmp_path / "x.pt", "w") as spoilt:
        for name in archive.namelist():
            raw = archive.read(name)
            if name.endswith("data.pkl"):
                size = b"K\x05K\x03K\x06\x87"                      # 5, 3, 6: the shape
                assert raw.count(size) == 1
                raw = raw.replace(size, b"K\x7fK\x03K\x06\x87")
            spoilt.writestr(name, raw)
    with pytest.raises(InputError, match=r"element \d+ of a storage of 90"):
        read_pt(tmp_path / "x.pt")


def test_sglang_stat():
    """Library (torch.save), contents after SGLang 0.5.23 _StatAccumulator.dump."""
    made = sglang_stat(DATA / "sglang_stat.pt")
    count = files.sglang_stat()
    np.testing.assert_array_equal(made.counts.counts, count[:3, 1:].reshape(-1, EXPERTS))
    np.testing.assert_array_equal(made.counts.layer, [1, 2] * 3)
    np.testing.assert_array_equal(made.counts.step, np.repeat([0, 1, 2], 2))
    assert made.notes == (
        "2 of 5 steps count nothing (a buffer that was not full) and are left out",
        "1 of 3 layers count nothing (dense ones) and are left out",
    )


def test_sglang_per_pass():
    """Library (torch.save), contents after SGLang 0.5.23 _DetailAccumulator.dump: physical counts become logical by the map."""
    rows = sglang_per_pass(DATA / "per_pass").counts
    expected = []
    for rank, step, _, _, _, count, _ in sorted(files.sglang_per_token(), key=lambda one: (one[1], one[0])):
        for layer in (1, 2):
            expected.append((step, rank, layer, np.bincount(MAP[layer], count[layer], minlength=EXPERTS).astype(int).tolist()))
    assert list(zip(rows.step, rows.rank, rows.layer, rows.counts.tolist(), strict=True)) == expected
    assert rows.meta["physical_to_logical"] == MAP[1:].tolist()


def test_sglang_per_token():
    """Library (torch.save), contents after SGLang 0.5.23 _DetailSinglePassGatherer: 8 slots, two of them used, -1 elsewhere."""
    trace = sglang_per_token(DATA / "per_token").tokens
    passes = files.sglang_per_token()
    order = [0, 2, 1]                                       # by step, then rank
    np.testing.assert_array_equal(trace.expert_ids, np.concatenate([passes[i][6] for i in order]))
    assert trace.step.tolist() == [7] * 7 + [8] * 2
    assert trace.rank.tolist() == [0] * 5 + [1] * 2 + [0] * 2
    assert trace.seq.tolist() == [0, 0, 0, 1, 1, 2, 2, 0, 1], "the decode pass continues the two prompts"
    assert trace.pos.tolist() == [0, 1, 2, 0, 1, 0, 1, 3, 2]
    assert trace.phase.tolist() == [0] * 7 + [1] * 2
    assert trace.token_id.tolist() == [100, 101, 102, 100, 101, 100, 101, 103, 102]
    assert trace.meta["moe_layers"] == [1, 2]
    assert trace.n_experts == EXPERTS


def test_physical_ids_without_a_map_are_refused(tmp_path):
    """Specification: the same file with the key of the map renamed."""
    stored = DATA / "per_token" / "expert_distribution_recorder_1.5_0.pt"
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(tmp_path / "x.pt", "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name).replace(b"last_physical_to_logical_map", b"last_physical_to_logical_nap"))
    for importer in (sglang_per_token, sglang_per_pass):
        with pytest.raises(InputError, match="ids are physical and last_physical_to_logical_map is missing"):
            importer(tmp_path / "x.pt")


def sglang_answer(ids, prompt):
    raw = base64.b64encode(ids.astype("<i4").tobytes()).decode()
    return {"text": "...", "meta_info": {"id": "a", "prompt_tokens": prompt, "completion_tokens": len(ids) + 1 - prompt,
                                         "routed_experts": raw}}


def test_sglang_routed_experts(tmp_path):
    """Specification: base64 of raw int32 [prompt + answer - 1, hidden layers, k]; the dense first layer's rows mean nothing."""
    rng = np.random.default_rng(3)
    ids = [choices(rng, n) for n in (5, 3)]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([sglang_answer(ids[0], 4), sglang_answer(ids[1], 2)]))
    trace = sglang_routed_experts(path, layers=LAYERS, top_k=TOP_K, experts=EXPERTS, dense=1).tokens
    np.testing.assert_array_equal(trace.expert_ids, np.concatenate(ids)[:, 1:])
    assert trace.seq.tolist() == [0] * 5 + [1] * 3
    assert trace.phase.tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    with pytest.raises(InputError, match=r"all but the last and the first 0 are expected \(layers, top_k or start is another"):
        sglang_routed_experts(path, layers=1, top_k=TOP_K)
    with pytest.raises(InputError, match="the number of hidden layers is not in the answers; give layers=N"):
        sglang_routed_experts(path, top_k=2)


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint8, np.uint16])
def test_vllm_routed_experts_as_an_array(tmp_path, dtype):
    """Library (numpy.save) of CompletionOutput.routed_experts; the type is that of the header."""
    ids = choices(np.random.default_rng(4), 7).astype(dtype)
    np.save(tmp_path / "x.npy", ids)
    trace = vllm_routed_experts(tmp_path / "x.npy", prompt=5, experts=EXPERTS).tokens
    np.testing.assert_array_equal(trace.expert_ids, ids)
    assert trace.phase.tolist() == [0] * 5 + [1] * 2


def test_vllm_routed_experts_as_lists(tmp_path):
    """Specification (0.21): prompt_routed_experts beside choices with routed_experts; each choice continues the same prompt."""
    rng = np.random.default_rng(5)
    prompt, first, second = (choices(rng, n) for n in (4, 3, 2))
    answer = {"id": "a", "prompt_routed_experts": prompt.tolist(),
              "choices": [{"index": 0, "routed_experts": first.tolist()}, {"index": 1, "routed_experts": second.tolist()}]}
    write_lines(tmp_path / "x.jsonl", [answer])
    trace = vllm_routed_experts(tmp_path / "x.jsonl", experts=EXPERTS).tokens
    np.testing.assert_array_equal(trace.expert_ids, np.concatenate([prompt, first, prompt, second]))
    assert trace.phase.tolist() == [0] * 4 + [1] * 3 + [0] * 4 + [1] * 2


def test_vllm_routed_experts_as_base64(tmp_path):
    """Library (numpy.save), in the answer of /inference/v1/generate."""
    ids = choices(np.random.default_rng(6), 6).astype(np.uint8)
    answer = {"usage": {"prompt_tokens": 4}, "choices": [{"routed_experts": npy_base64(ids)}]}
    (tmp_path / "x.json").write_text(json.dumps(answer))
    trace = vllm_routed_experts(tmp_path / "x.json", experts=EXPERTS).tokens
    np.testing.assert_array_equal(trace.expert_ids, ids)
    assert trace.phase.tolist() == [0] * 4 + [1] * 2


def test_vllm_padding_of_zeros_is_flagged(tmp_path):
    """Specification: veRL and others pad on the left with zeros, which look like expert 0 in every slot."""
    ids = choices(np.random.default_rng(7), 6)
    ids[:2] = 0
    np.save(tmp_path / "x.npy", ids)
    made = vllm_routed_experts(tmp_path / "x.npy", experts=EXPERTS)
    assert "2 of 6 rows are zeros in every layer: padding, flagged as such" in made.notes
    assert made.tokens.flags.tolist() == [1, 1, 0, 0, 0, 0]
    assert (made.tokens.expert_ids[:2] == -1).all()


def test_vllm_eplb(tmp_path):
    """Library (numpy.savez) of expert_load_window int [window, layers, physical experts] with the map."""
    window = np.random.default_rng(8).integers(0, 9, (4, LAYERS, MAP.shape[1]))
    np.savez(tmp_path / "x.npz", expert_load_window=window, physical_to_logical_map=MAP)
    rows = vllm_eplb(tmp_path / "x.npz").counts
    expected = [[np.bincount(MAP[layer], one[layer], minlength=EXPERTS) for layer in range(LAYERS)] for one in window]
    np.testing.assert_array_equal(rows.counts, np.concatenate(expected))
    np.save(tmp_path / "y.npy", window)
    with pytest.raises(InputError, match="8 physical experts and no physical_to_logical_map"):
        vllm_eplb(tmp_path / "y.npy", experts=6)
    np.testing.assert_array_equal(vllm_eplb(tmp_path / "y.npy", experts=8).counts.counts, window.reshape(-1, 8))


def test_vllm_moe_log(tmp_path):
    """Specification (VLLM_LOG_MOE): a meta line, then a route per token; the dummy pass in front is named."""
    rng = np.random.default_rng(9)
    ids = choices(rng, 200, 1, 60, 4)[:, 0]
    ids[:40] = [3, 1, 4, 5]
    weights = rng.random((200, 4)).round(3)
    lines = [{"type": "meta", "model_id": "some", "top_k": 4, "num_experts": 60}]
    lines += [{"type": "route", "req_id": "r", "token_idx": i, "layer": 5, "topk_ids": one.tolist(), "topk_weights": w.tolist()}
              for i, (one, w) in enumerate(zip(ids, weights, strict=True))]
    made = vllm_moe_log(write_lines(tmp_path / "x.jsonl", lines))
    np.testing.assert_array_equal(made.tokens.expert_ids[:, 0], ids)
    np.testing.assert_array_equal(made.tokens.gate_weights[:, 0], weights.astype(np.float32))
    assert (made.tokens.n_experts, made.tokens.meta["moe_layers"], made.tokens.meta["model"]) == (60, [5], "some")


def test_tensorrt_llm():
    """Library (safetensors), keys after TensorRT-LLM's ExpertStatistic: "<iteration>_<layer>" -> int64 [experts]."""
    rows = tensorrt_llm(DATA / "trtllm").counts
    per_rank = [np.random.default_rng(20 + rank).integers(0, 9, (2, 2, EXPERTS)) for rank in (0, 1)]
    expected = [(100 + step, rank, 3 + layer, per_rank[rank][step, layer].tolist())
                for step in (0, 1) for rank in (0, 1) for layer in (0, 1)]
    assert list(zip(rows.step, rows.rank, rows.layer, rows.counts.tolist(), strict=True)) == expected
    assert rows.meta["top_k"] == TOP_K


@pytest.mark.parametrize("logits", [False, True])
def test_megatron(tmp_path, logits):
    """Specification (router_trace.py, RouterTracer): JSON lines per rank, logits in a bfloat16 sidecar; MTP records left out."""
    expected = []
    for rank in (0, 3):
        lines, ids, raw = megatron_lines(rank, logits=logits)
        write_lines(tmp_path / f"router_trace_rank{rank}.jsonl", lines)
        (tmp_path / f"logits_rank{rank}.bin").write_bytes(raw)
        expected.append((ids, np.frombuffer(raw, "<u2").astype(np.uint32)))
    made = megatron(tmp_path, experts=EXPERTS)
    trace = made.tokens
    assert trace.rank.tolist() == ([0] * 4 + [3] * 4) * 2
    for rank, (ids, bits) in zip((0, 3), expected, strict=True):
        own = trace.rank == rank
        np.testing.assert_array_equal(trace.expert_ids[own], ids)
        if logits:
            scores = (bits << 16).view(np.float32).reshape(2, 2, 4, EXPERTS).transpose(0, 2, 1, 3).reshape(8, 2, EXPERTS)
            np.testing.assert_array_equal(trace.scores[own], scores)
    assert trace.meta["moe_layers"] == [2, 3]
    assert "4 records of multi-token prediction are left out" in made.notes
    assert (trace.phase == 2).all()


def test_megatron_takes_interleaved_sequences_apart(tmp_path):
    """Specification: rows of a micro-batch are [position, sequence]; row 5 of 2 sequences is position 2 of sequence 1."""
    lines, ids, _ = megatron_lines(0, micro_batches=2)
    write_lines(tmp_path / "router_trace_rank0.jsonl", lines)
    trace = megatron(tmp_path, micro_batch=2).tokens
    assert trace.seq.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    np.testing.assert_array_equal(trace.expert_ids[:4], ids[[0, 2, 1, 3]])
    with pytest.raises(InputError, match=r"micro_batch=3: .* has a micro-batch of 4 tokens"):
        megatron(tmp_path, micro_batch=3)


def test_hf_router_logits(tmp_path):
    """Library (safetensors): float32 [batch x tokens, experts] per layer; the mask takes the padding out."""
    logits, mask = files.hf_logits()
    made = hf_router_logits(DATA / "hf.safetensors", top_k=TOP_K)
    keep = mask.ravel() > 0
    expected = np.stack([np.argsort(-one, axis=1)[:, :TOP_K] for one in logits], 1)[keep]
    np.testing.assert_array_equal(made.tokens.expert_ids, expected)
    np.testing.assert_array_equal(made.tokens.scores, np.stack(logits, 1)[keep])
    assert made.tokens.seq.tolist() == [0, 0, 1, 1, 1, 1]
    assert made.tokens.pos.tolist() == [0, 1, 0, 1, 2, 3]
    np.savez(tmp_path / "x.npz", np.stack(logits))
    np.testing.assert_array_equal(hf_router_logits(tmp_path / "x.npz", top_k=1).tokens.scores, np.stack(logits, 1))
    own = np.stack([choices(np.random.default_rng(0), 8, 1, EXPERTS, 3)[:, 0]] * 2)
    np.savez(tmp_path / "y.npz", **{f"router_logits.{i}": one for i, one in enumerate(logits)},
             **{f"router_indices.{i}": one for i, one in enumerate(own)})
    np.testing.assert_array_equal(hf_router_logits(tmp_path / "y.npz").tokens.expert_ids, own.transpose(1, 0, 2))


def test_deepseek_eplb(tmp_path):
    """Library (numpy.save) of the weight [layers, experts] of rebalance_experts; loads that are fractions keep their ratios."""
    weight = np.array([[90, 132, 40, 61], [20, 107, 104, 64]])
    np.save(tmp_path / "x.npy", weight)
    np.testing.assert_array_equal(deepseek_eplb(tmp_path / "x.npy").counts.counts, weight)
    (tmp_path / "x.json").write_text(json.dumps({"weight": (weight / 7).tolist()}))
    rows = deepseek_eplb(tmp_path / "x.json").counts
    np.testing.assert_allclose(rows.counts * rows.meta["counts_unit"], weight / 7, rtol=1e-8)


def test_moe_infinity(tmp_path):
    """Library (numpy.save) of trace_collection float [capacity, layers, experts]; rows without a request are 0."""
    found = np.zeros((4, 2, EXPERTS), np.float32)
    found[:3] = np.random.default_rng(0).integers(0, 5, (3, 2, EXPERTS)) + 1
    np.save(tmp_path / "x.npy", found)
    np.testing.assert_array_equal(moe_infinity(tmp_path / "x.npy").counts.counts, found[:3].reshape(-1, EXPERTS))


def test_llama_imatrix():
    """Library (gguf-py of llama.cpp), tensors after imatrix.cpp's save_imatrix; the dense layer's single count is no expert's."""
    rows = llama_imatrix(DATA / "imatrix.gguf").counts
    assert rows.layer.tolist() == [1, 2]
    np.testing.assert_array_equal(rows.counts, list(files.imatrix().values()))
    assert rows.meta["datasets"] == ["calibration.txt"]


def test_flame_moe(tmp_path):
    """Library (polars' Parquet; torch.save of the pair that FLAME-MoE's capture keeps): scores of all experts, ranked indices."""
    rng = np.random.default_rng(5)
    scores = rng.random((2, 4, EXPERTS)).astype(np.float32)
    indices = np.argsort(-scores, axis=2)
    both = {"scores": scores.reshape(8, -1).tolist(), "indices": indices.reshape(8, -1).tolist()}
    frame = pl.DataFrame({"layer": np.repeat([2, 3], 4), **both})
    frame.write_parquet(tmp_path / "x.parquet")
    trace = flame_moe(tmp_path / "x.parquet", top_k=3).tokens
    np.testing.assert_array_equal(trace.expert_ids, indices.transpose(1, 0, 2)[:, :, :3])
    np.testing.assert_array_equal(trace.gate_weights, -np.sort(-scores, axis=2).transpose(1, 0, 2)[:, :, :3])
    pair = read_pt(DATA / "flame" / "2" / "0.pt")
    made = flame_moe(DATA / "flame", top_k=2).tokens
    np.testing.assert_array_equal(made.expert_ids[:, 0], pair[1][:, :2])
    assert made.meta["moe_layers"] == [2]
    interleaved = flame_moe(tmp_path / "x.parquet", top_k=3, micro_batch=2).tokens
    assert (interleaved.seq.tolist(), interleaved.pos.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])


def test_moe_balance(tmp_path):
    """Specification (sim/trace_format.md): a JSON line per batch and layer with origin_rows; and the .npz it is made from."""
    rng = np.random.default_rng(6)
    lines, expected = [], []
    for batch, n in ((12, 3), (13, 2)):
        ids, weights = choices(rng, n, 2), rng.random((n, 2, TOP_K)).round(2)
        expected.append((ids, weights))
        lines += [{"layer": layer, "batch_id": batch, "origin_rows": [0, 1, 1][:n], "topk_experts": ids[:, layer].tolist(),
                   "topk_weights": weights[:, layer].tolist(), "request_id": batch} for layer in (0, 1)]
    trace = moe_balance(write_lines(tmp_path / "x.jsonl", lines), experts=EXPERTS).tokens
    np.testing.assert_array_equal(trace.expert_ids, np.concatenate([ids for ids, _ in expected]))
    np.testing.assert_allclose(trace.gate_weights, np.concatenate([weights for _, weights in expected]), rtol=1e-6)
    assert trace.rank.tolist() == [0, 1, 1, 0, 1]
    ids = choices(rng, 5)
    np.savez(tmp_path / "problem_id_12.npz", routed_experts=ids, prompt_token_ids=[5, 6, 7], output_token_ids=[8, 9, 10])
    other = moe_balance(tmp_path / "problem_id_12.npz", experts=EXPERTS).tokens
    np.testing.assert_array_equal(other.expert_ids, ids)
    assert (other.token_id.tolist(), other.phase.tolist()) == ([5, 6, 7, 8, 9], [0, 0, 0, 1, 1])


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_of_tokens_layers_and_experts(tmp_path, suffix):
    """Library (polars): rows in any order; a token with one expert less has an empty slot."""
    ids = choices(np.random.default_rng(7), 4, 2)
    rows = [(token, 3 + layer, int(expert), 0.5 - 0.25 * slot, token // 2)
            for (token, layer, slot), expert in np.ndenumerate(ids) if (token, layer, slot) != (3, 1, 1)]
    frame = pl.DataFrame(rows, schema=["token", "layer", "expert", "weight", "seq"], orient="row")
    frame = frame.sample(fraction=1, shuffle=True, seed=1).sort("weight", descending=True)
    path = tmp_path / f"x.{suffix}"
    frame.write_parquet(path) if suffix == "parquet" else frame.write_csv(path, separator="\t" if suffix == "tsv" else ",")
    trace = table(path, experts=EXPERTS).tokens
    ids[3, 1, 1] = -1
    np.testing.assert_array_equal(trace.expert_ids, ids)
    assert trace.seq.tolist() == [0, 0, 1, 1]
    assert trace.gate_weights[3, 1].tolist() == [0.5, 0]
    assert trace.meta["moe_layers"] == [3, 4]


def test_a_trace_is_cleaned_and_batched(tmp_path):
    """Three sequences of 3, 1 and 2 tokens, two at a time: 0 1 | 0 2 | 0 2, the third taking the place of the second."""
    seq, pos = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 0, 0, 1])
    trace = replace(made_up(np.random.default_rng(0), tokens=6), seq=seq, pos=pos, step=np.arange(6))
    write_trace(trace, tmp_path)
    batched = moetrace(tmp_path, batch=2).tokens
    assert batched.step.tolist() == [0, 0, 1, 1, 2, 2]
    assert batched.seq.tolist() == [0, 1, 0, 2, 0, 2]
    assert batched.pos.tolist() == [0, 0, 1, 0, 2, 1]
    np.testing.assert_array_equal(batched.expert_ids, trace.expert_ids[[0, 3, 1, 4, 2, 5]])


@pytest.mark.parametrize(("alike", "left"), [(31, 40), (32, 8)])
def test_32_tokens_in_a_row_that_choose_alike_are_no_text(tmp_path, alike, left):
    trace = made_up(np.random.default_rng(0), tokens=40, experts=64)
    ids = trace.expert_ids.copy()
    ids[4 : 4 + alike] = ids[4]
    write_trace(replace(trace, expert_ids=ids), tmp_path)
    assert moetrace(tmp_path, clean=True).tokens.n_tokens == left


def test_what_is_told_of_layers_that_are_left_out_goes_too(tmp_path):
    trace = made_up(np.random.default_rng(0), layers=3, experts=4)
    write_trace(replace(trace, meta={"model": "mine", "moe_layers": [1, 2, 5]}), tmp_path)
    kept = moetrace(tmp_path, layers=2).tokens
    assert (kept.n_layers, kept.meta["moe_layers"]) == (2, [1, 2])
    np.testing.assert_array_equal(kept.expert_ids, trace.expert_ids[:, :2])


def test_expert_0_in_every_layer_is_a_choice_where_a_token_has_one_and_padding_where_it_has_two():
    """No router picks an expert twice."""
    for top_k, flags in ((1, None), (2, [PADDING, 0])):
        ids = np.zeros((2, 3, top_k), int)
        ids[1] = np.arange(1, 1 + top_k)
        made = tokens_from(Path("x"), ids, experts=4, meta={"model": "mine"}).tokens
        assert (made.flags if flags is None else made.flags.tolist()) == flags
        assert (made.expert_ids[0] == (0 if flags is None else -1)).all()


KNOWN = {
    "sglang_stat.pt": "sglang_stat", "per_pass": "sglang_per_pass", "per_token": "sglang_per_token", "flame": "flame_moe",
    "hf.safetensors": "hf_router_logits", "trtllm": "tensorrt_llm", "imatrix.gguf": "llama_imatrix",
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_format_is_recognised_by_what_is_in_it(name):
    assert detect(DATA / name) == KNOWN[name]


def test_formats_that_share_a_suffix_are_told_apart(tmp_path):
    ids = choices(np.random.default_rng(0), 50)
    np.save(tmp_path / "routes.npy", ids)
    np.save(tmp_path / "matrix.npy", np.random.default_rng(0).integers(0, 9, (4, 2, 6)).astype(np.float32))
    np.save(tmp_path / "weight.npy", np.ones((3, 8)))
    np.savez(tmp_path / "window.npz", expert_load_window=np.ones((2, 3, 4)))
    np.savez(tmp_path / "balance.npz", routed_experts=ids, prompt_token_ids=[1])
    write_lines(tmp_path / "megatron.jsonl", megatron_lines(0)[0])
    write_lines(tmp_path / "balance.jsonl", [{"layer": 0, "batch_id": 1, "origin_rows": [0], "topk_experts": [[1]]}])
    write_lines(tmp_path / "log.jsonl", [{"type": "meta", "top_k": 2}, {"type": "route", "layer": 0, "topk_ids": [1, 2]}])
    write_lines(tmp_path / "vllm.jsonl", [{"choices": [{"routed_experts": ids.tolist()}]}])
    (tmp_path / "sglang.json").write_text(json.dumps(sglang_answer(ids, 3), indent=1))
    (tmp_path / "x.csv").write_text("token,layer,expert\n0,0,1\n")
    write_trace(made_up(np.random.default_rng(0)), tmp_path / "trace")
    (tmp_path / "notes.txt").write_text("hello")
    found = {name: detect(tmp_path / name) for name in (
        "routes.npy", "matrix.npy", "weight.npy", "window.npz", "balance.npz", "megatron.jsonl", "balance.jsonl", "log.jsonl",
        "vllm.jsonl", "sglang.json", "x.csv", "trace", "notes.txt", "absent",
    )}  # fmt: skip
    assert found == {
        "routes.npy": "vllm_routed_experts", "matrix.npy": "moe_infinity", "weight.npy": "deepseek_eplb",
        "window.npz": "vllm_eplb",
        "balance.npz": "moe_balance", "megatron.jsonl": "megatron", "balance.jsonl": "moe_balance", "log.jsonl": "vllm_moe_log",
        "vllm.jsonl": "vllm_routed_experts", "sglang.json": "sglang_routed_experts", "x.csv": "table", "trace": "moetrace",
        "notes.txt": None, "absent": None,
    }  # fmt: skip


def test_convert_recognises_writes_and_says_what_it_found(tmp_path, capsys):
    """A log of 40 dummy rows before 100 real ones: they are named, and gone when cleaned."""
    ids = choices(np.random.default_rng(0), 140, 1, 60, 4)[:, 0]
    ids[:40] = [3, 1, 4, 5]
    lines = [{"type": "route", "req_id": "r", "layer": 0, "topk_ids": one.tolist()} for one in ids]
    write_lines(tmp_path / "x.jsonl", lines)
    assert main(["convert", str(tmp_path / "x.jsonl"), "-o", str(tmp_path / "out"), "experts=60"]) == 0
    said = capsys.readouterr().out
    assert "140 tokens (1 layers, 60 experts, top-4) from vllm_moe_log" in said
    assert "suspicious: rows 0 to 39 all choose the same experts: a dummy profiling pass, not text" in said
    assert main(["convert", str(tmp_path / "out"), "--from", "moetrace", "-o", str(tmp_path / "clean"), "clean=true"]) == 0
    np.testing.assert_array_equal(read_trace(tmp_path / "clean").expert_ids[:, 0], ids[40:])
    assert main(["convert", str(DATA / "sglang_stat.pt"), "-o", str(tmp_path / "counts")]) == 0
    assert read_count_rows(tmp_path / "counts").meta["converted"] == "sglang_stat sglang_stat.pt"


BAD = {
    "nothing there": (["absent", "-o", "out"], "absent: no such file or folder"),
    "no destination": (["x.csv"], "takes one file or folder, and -o DIR"),
    "misspelt format": (["x.csv", "--from", "tabel", "-o", "out"], "--from=tabel: there is no such format; it offers"),
    "misspelt option": (["x.csv", "-o", "out", "expert=3"], "convert.expert: table takes experts, model; did you mean"),
    "text for a number": (["x.csv", "-o", "out", "experts=many"], "convert.experts=many: must be a whole number or null"),
    "not recognised": (["notes.txt", "-o", "out"], "notes.txt: no format is recognised; say --from FORMAT"),
    "another format": (["x.csv", "--from", "llama_imatrix", "-o", "out"], "x.csv: not a whole GGUF (begins with b'toke')"),
    "out of range": (["x.csv", "-o", "out", "experts=1"], "x.csv: expert id 1 is out of range; 1 experts are 0..0"),
    "an unknown flag": (["x.csv", "-o", "out", "--fast"], "convert --fast: there is no such flag"),
    "a file as folder": (["x.csv", "-o", "notes.txt"], "notes.txt: is a file; a trace is a folder"),
    "a column missing": (["bad.csv", "--from", "table", "-o", "out"], "bad.csv: has no column 'expert'"),
    "an expert twice": (["twice.csv", "-o", "out", "experts=3"], "layer 0, row 0: expert 1 is picked twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("token,layer,expert\n0,0,1\n")
    (tmp_path / "bad.csv").write_text("token,layer\n0,0\n")
    (tmp_path / "twice.csv").write_text("token,layer,expert\n0,0,1\n0,0,1\n")
    (tmp_path / "notes.txt").write_text("hello")
    arguments, says = BAD[case]
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("clustersim: ")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert not said.out
    assert not (tmp_path / "out").exists()
