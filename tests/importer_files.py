"""Files as the real systems write them, for the tests of the importers. `python -m tests.importer_files` makes the stored ones.

A .pt is made by torch.save itself, a .safetensors by the safetensors library, a .gguf by the gguf library of llama.cpp: the code
that the systems call. What each puts in follows the source of that system. Stored, because the tests run without those libraries.
"""

from __future__ import annotations

import base64
import io
import json
from collections import OrderedDict
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data" / "importers"
LAYERS, EXPERTS, SLOTS, TOP_K = 3, 6, 8, 2          # layer 0 is dense where a system counts all layers
MAP = np.array([[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 2, 5], [0, 2, 4, 1, 3, 5, 3, 3]])


def choices(rng, tokens, layers=LAYERS, experts=EXPERTS, top_k=TOP_K):
    """Distinct experts, int [tokens, layers, top_k]."""
    return rng.random((tokens, layers, experts)).argsort(axis=2)[:, :, :top_k]


def sglang_stat():
    """logical_count int32 [buffered steps, layers, experts] of a circular buffer of 5 that holds 3 passes; layer 0 is dense."""
    rng = np.random.default_rng(0)
    count = np.zeros((5, LAYERS, EXPERTS), np.int32)
    count[:3, 1:] = rng.integers(1, 9, (3, LAYERS - 1, EXPERTS))
    return count


def sglang_per_token():
    """Two passes of rank 0 and one of rank 1: a prompt pass of 2 requests (3 and 2 tokens), a decode pass that continues both.

    As _DetailSinglePassGatherer keeps them: int32 [layers, tokens, 8], -1 where nothing was chosen, ids physical.
    """
    rng = np.random.default_rng(1)
    passes = []
    for rank, step, pos, lengths in ((0, 7, [0, 1, 2, 0, 1], [3, 2]), (0, 8, [3, 2], None), (1, 7, [0, 1], [2])):
        ids = np.full((LAYERS, len(pos), 8), -1, np.int32)
        logical = choices(rng, len(pos), LAYERS - 1)
        for layer in range(1, LAYERS):
            for token, row in enumerate(logical[:, layer - 1]):
                ids[layer, token, :TOP_K] = [rng.choice(np.flatnonzero(MAP[layer] == expert)) for expert in row]
        count = np.stack([np.bincount(row[row >= 0], minlength=SLOTS) for row in ids])
        passes.append((rank, step, pos, lengths, ids, count, logical))
    return passes


def hf_logits():
    """float32 [batch x tokens, experts] of 2 layers, batch of 2 padded to 4 tokens on the left, as output_router_logits gives."""
    rng = np.random.default_rng(2)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    return [rng.normal(size=(8, EXPERTS)).astype(np.float32) for _ in range(2)], mask


def imatrix():
    """counts float32 [experts, 1] of three tensors of layers 1 and 2, as imatrix.cpp's save_imatrix writes them."""
    return {layer: np.random.default_rng(layer).integers(0, 50, EXPERTS).astype(np.float32) for layer in (1, 2)}


def megatron_lines(rank, *, logits=False, micro_batches=1):
    """RouterTracer's records: a JSON line per step, micro-batch and layer; ids as lists. Returns (lines, ids by step, logits)."""
    rng = np.random.default_rng(10 + rank)
    lines, found, raw, offset = [], [], b"", 0
    for step in range(2):
        for _ in range(micro_batches):
            ids = choices(rng, 4, 2)
            found.append(ids)
            for i, layer in enumerate((2, 3)):
                record = {"step": step, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank,
                          "num_tokens": 4, "topk": TOP_K, "top_indices": ids[:, i].tolist()}
                if logits:
                    values = rng.integers(-64, 64, (4, EXPERTS)).astype(np.float32) / 8          # exact in bfloat16
                    block = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
                    record |= {"logit_offset": offset, "logit_bytes": len(block), "logit_shape": [4, EXPERTS]}
                    raw, offset = raw + block, offset + len(block)
                lines.append(record)
            lines.append({**lines[-1], "block": "mtp", "mtp_idx": 0})
    return lines, np.concatenate(found), raw


def npy_base64(array):
    """An array as vLLM's /inference/v1/generate sends it: base64 of a .npy."""
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def main() -> None:
    import gguf
    import torch
    from safetensors.numpy import save_file

    DATA.mkdir(parents=True, exist_ok=True)
    torch.save({"rank": 0, "logical_count": torch.from_numpy(sglang_stat()), "average_utilization_rate_over_window": None},
               DATA / "sglang_stat.pt")
    for rank in (0, 1):
        records = [
            {"forward_pass_id": step, "rank": rank, "gatherer_key": "primary",
             "input_ids": [100 + p for p in pos], "positions": pos,
             "extend_seq_lens": lengths, "forward_mode": 2 if lengths is None else 1, "topk_ids_of_layer": torch.from_numpy(ids),
             "misc_objects": [], "global_physical_count": torch.from_numpy(count)}
            for own, step, pos, lengths, ids, count, _ in sglang_per_token() if own == rank
        ]
        (DATA / "per_token").mkdir(exist_ok=True)
        torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(MAP)},
                   DATA / "per_token" / f"expert_distribution_recorder_1.5_{rank}.pt")
        keys = ("forward_pass_id", "rank", "gatherer_key", "global_physical_count")
        (DATA / "per_pass").mkdir(exist_ok=True)
        torch.save({"records": [{key: one[key] for key in keys} for one in records],
                    "last_physical_to_logical_map": torch.from_numpy(MAP)},
                   DATA / "per_pass" / f"expert_distribution_recorder_1.5_{rank}.pt")
    rng = np.random.default_rng(5)
    scores = torch.from_numpy(rng.random((4, EXPERTS)).astype(np.float32)).softmax(-1)
    (DATA / "flame" / "2").mkdir(parents=True, exist_ok=True)
    torch.save((scores, scores.argsort(1, descending=True)), DATA / "flame" / "2" / "0.pt")
    kinds = OrderedDict(
        half=torch.arange(6, dtype=torch.float16).reshape(2, 3).T, brain=torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        none=torch.zeros(0, 3, dtype=torch.int64), shape=torch.Size([2, 3]), yes=torch.tensor([True, False]),
        deep=[{"a": (1, 2.5, "x", None, True, 2**40)}],
    )
    torch.save(kinds, DATA / "kinds.pt")
    torch.save(torch.nn.Linear(2, 2), DATA / "module.pt")

    logits, mask = hf_logits()
    save_file({f"router_logits.{i}": one for i, one in enumerate(logits)} | {"attention_mask": mask}, DATA / "hf.safetensors")
    (DATA / "trtllm").mkdir(exist_ok=True)
    (DATA / "trtllm" / "meta_info.json").write_text(json.dumps({"num_experts": EXPERTS, "num_experts_per_token": TOP_K}))
    for rank in (0, 1):
        counts = np.random.default_rng(20 + rank).integers(0, 9, (2, 2, EXPERTS))
        save_file({f"{step}_{layer}": counts[step - 100, layer - 3].copy() for step in (100, 101) for layer in (3, 4)},
                  DATA / "trtllm" / f"rank{rank}.safetensors")

    writer = gguf.GGUFWriter(DATA / "imatrix.gguf", arch="")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for layer, counts in imatrix().items():
        for part in ("up", "gate", "down"):
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight.in_sum2", np.ones((EXPERTS, 4), np.float32))
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight.counts", counts.reshape(EXPERTS, 1))
    writer.add_tensor("blk.0.ffn_up.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
