"""A thousand spoilt files: each is refused in one line, or reads as what was written; nothing is run, nothing else is raised."""

import json
import zlib

import numpy as np
import pytest

from clustersim import importers
from clustersim.importers.recognition import detect
from clustersim.types import InputError
from clustersim.workload.trace import read_trace, write_trace
from clustersim.workload.trace_counts import CountRows, read_count_rows, write_counts
from clustersim.workload.trace_stream import stream
from tests.importer_files import DATA, choices, megatron_lines, npy_base64, write_lines
from tests.unit.test_trace import COLUMNS, made_up

OPTIONS = {
    "hf_router_logits": {"top_k": 2}, "sglang_routed_experts": {"layers": 3, "top_k": 2}, "vllm_eplb": {"experts": 8},
}  # fmt: skip


def mutated(rng, whole):
    """One of: a few bytes changed, cut short, a piece left out, a piece doubled, a piece of zeros, nothing but the head."""
    raw = bytearray(whole)
    kind = rng.integers(6)
    if kind == 0:
        for _ in range(rng.integers(1, 5)):
            raw[rng.integers(len(raw))] = rng.integers(256)
    elif kind == 1:
        del raw[rng.integers(len(raw)) :]
    else:
        begin = int(rng.integers(len(raw)))
        end = min(len(raw), begin + int(rng.integers(1, 64)))
        if kind == 2:
            del raw[begin:end]
        elif kind == 3:
            raw[begin:begin] = raw[begin:end]
        elif kind == 4:
            raw[begin:end] = bytes(end - begin)
        else:
            raw[len(raw) - (end - begin) :] = rng.bytes(end - begin)
    return bytes(raw)


def check_said(error, file):
    said = str(error)
    assert "\n" not in said
    assert file.name in said
    assert len(said) < 700


def test_400_spoilt_traces_are_refused_or_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(1)
    before = made_up(rng, tokens=60, scores=True, extra=True, missing=0.1)
    write_trace(before, tmp_path)
    file = tmp_path / "tokens.parquet"
    whole = file.read_bytes()
    refused = 0
    for turn in range(400):
        file.write_bytes(spoilt := mutated(rng, whole))
        for read in (read_trace, lambda path: next(stream(path))):
            try:
                after = read(tmp_path)
            except InputError as error:
                check_said(error, file)
                refused += 1
                continue
            for name in COLUMNS:
                np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=f"{turn} {name}")
            assert spoilt == whole or zlib.crc32(spoilt) != zlib.crc32(whole)
    assert refused > 700, "nearly all mutations must be found"


def test_100_spoilt_counts_are_refused_or_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(2)
    n = 12
    numbers = {name: np.arange(n) for name in ("layer", "step", "step_end", "rank", "tokens")}
    rows = CountRows(counts=rng.integers(0, 99, (n, 8)), phase=np.ones(n, int), domain=("a", "b") * 6, **numbers)
    write_counts(rows, tmp_path)
    file = tmp_path / "counts.parquet"
    whole = file.read_bytes()
    for _ in range(100):
        file.write_bytes(mutated(rng, whole))
        try:
            after = read_count_rows(tmp_path)
        except InputError as error:
            check_said(error, file)
            continue
        assert after.domain == rows.domain
        for name in (*numbers, "counts", "phase"):
            np.testing.assert_array_equal(getattr(after, name), getattr(rows, name))


def sources(folder):
    """Importer and a valid file of each kind."""
    rng = np.random.default_rng(3)
    ids = choices(rng, 20)
    np.save(folder / "routes.npy", ids)
    np.savez_compressed(folder / "balance.npz", routed_experts=ids, prompt_token_ids=np.arange(9))
    np.save(folder / "window.npy", rng.integers(0, 9, (3, 2, 8)))
    (folder / "weight.json").write_text(json.dumps(rng.random((3, 8)).tolist()))
    (folder / "vllm.json").write_text(json.dumps({"choices": [{"routed_experts": npy_base64(ids)}]}))
    rows = [f"{t},{layer},{e}" for (t, layer, _), e in np.ndenumerate(ids)]
    (folder / "x.csv").write_text("\n".join(["token,layer,expert", *rows]))
    write_lines(folder / "router_trace_rank0.jsonl", megatron_lines(0)[0])
    stored = {
        "sglang_stat": "sglang_stat.pt", "sglang_per_token": "per_token/expert_distribution_recorder_1.5_0.pt",
        "sglang_per_pass": "per_pass/expert_distribution_recorder_1.5_0.pt", "flame_moe": "flame/2/0.pt",
        "hf_router_logits": "hf.safetensors", "llama_imatrix": "imatrix.gguf",
    }  # fmt: skip
    made = {
        "vllm_routed_experts": "routes.npy", "moe_balance": "balance.npz", "vllm_eplb": "window.npy",
        "deepseek_eplb": "weight.json",
        "table": "x.csv", "megatron": "router_trace_rank0.jsonl", "moe_infinity": "window.npy",
    }  # fmt: skip
    return [(name, (DATA / path).read_bytes(), path.rpartition("/")[2]) for name, path in stored.items()] + [
        (name, (folder / path).read_bytes(), path) for name, path in made.items()
    ] + [("vllm_routed_experts", (folder / "vllm.json").read_bytes(), "vllm.json")]


def test_500_spoilt_files_of_other_systems_are_refused_or_converted(tmp_path, capfd):
    rng = np.random.default_rng(4)
    known = sources(tmp_path)
    (tmp_path / "spoilt").mkdir()
    for turn in range(504):
        name, whole, path = known[turn % len(known)]
        file = tmp_path / "spoilt" / path
        file.write_bytes(mutated(rng, whole))
        try:
            made = getattr(importers, name)(file, **OPTIONS.get(name, {}))
            if made.tokens is not None:
                write_trace(made.tokens, tmp_path / "out")
        except InputError as error:
            check_said(error, tmp_path / "out" if str(tmp_path / "out") in str(error) else tmp_path / "spoilt")
        assert detect(file) in (None, *importers.__all__)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["sglang_stat.pt", "hf.safetensors", "imatrix.gguf"])
def test_a_file_under_another_name_is_refused_by_every_importer_that_does_not_know_it(tmp_path, name):
    whole = (DATA / name).read_bytes()
    for other in importers.__all__:
        for suffix in (".pt", ".npy", ".npz", ".safetensors", ".json", ".jsonl", ".gguf", ".csv", ".parquet"):
            if suffix == (DATA / name).suffix:
                continue
            (file := tmp_path / f"x{suffix}").write_bytes(whole)
            if (other, suffix) in (("llama_imatrix", suffix), ("sglang_stat", suffix)) or other.startswith("sglang_per"):
                continue                    # these go by what is in the file, not by its name
            with pytest.raises(InputError) as refused:
                getattr(importers, other)(file, **OPTIONS.get(other, {}))
            assert "\n" not in str(refused.value)
