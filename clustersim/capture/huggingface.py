"""Runs text through a Hugging Face mixture-of-experts model and records its routers: `clustersim capture hf`.

Batch by batch, each stored as soon as it is done, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.types import InputError, Trace
from clustersim.workload.trace import read_trace
from clustersim.workload.trace_writing import TraceWriter, write_trace

Progress = Callable[[float, str], None]
Tokens = NDArray[np.int64]


def capture_hf(
    model: Any, texts: Sequence[str | Path], out: str | Path, *, device: str = "auto", dtype: str = "auto", batch: int = 8,
    length: int = 512, sequences: int | None = None, generate: int = 0, scores: bool = False, tokenizer: str | None = None,
    progress: Progress = lambda fraction, what: None,
) -> dict[str, Any]:
    """Routes text files through a model and writes the trace into the folder `out`.

    Each file is a domain, cut into sequences of `length` tokens; the last one may be shorter and is padded in its batch. One
    step per forward pass: a prompt pass per batch, then one per generated token.

    Args:
        model: a name or folder that transformers can load, or an nn.Module.
        device: "cpu", "cuda" or any other name torch has; "auto" is the GPU when there is one.
        dtype: "auto" is as stored; bfloat16, float16, float32.
        batch: sequences per pass.
        length: tokens per sequence, most.
        sequences: of each file, most; left out, all.
        generate: tokens to generate greedily after each sequence, recorded as decoding.
        scores: record the router's logits too.
        tokenizer: name or folder; left out, the model's. "bytes": the bytes of the text, for models without one.
        progress: told (fraction done, what is being done).

    Returns:
        path, tokens, sequences, steps, seconds, and how many batches an earlier run had done.

    Raises:
        InputError: torch or transformers is missing, the model or a text cannot be read, no router is found, `out` holds the
            parts of another capture.
    """
    began = time.perf_counter()
    torch = _torch()
    least = {"batch": 1, "length": 2, "generate": 0, "sequences": 1}
    given = {"batch": batch, "length": length, "generate": generate, "sequences": 1 if sequences is None else sequences}
    for key, value in given.items():
        if value < least[key]:
            raise InputError(f"{key}={value}: must be at least {least[key]}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; a trace is a folder")
    read = {Path(text).stem: _text(Path(text)) for text in texts}
    if not read:
        raise InputError("capture hf: needs text; give --text FILE")
    progress(0.0, "loading the model")
    network, name, where = _model(torch, model, device, dtype)
    encode = _tokenizer(tokenizer, model if isinstance(model, str | Path) else None, network)
    pieces = [(domain, piece) for domain, text in read.items() for piece in _pieces(encode(text), length, sequences)]
    if not pieces:
        raise InputError("capture hf: the tokenizer finds no tokens in the text; give tokenizer=NAME or tokenizer=bytes")
    plan = {"model": name, "batch": batch, "length": length, "generate": generate, "scores": scores,
            "tokens": hashlib.sha256(b"".join(piece.tobytes() for _, piece in pieces)).hexdigest()}
    parts = _parts_folder(folder, plan)
    batches = [pieces[i : i + batch] for i in range(0, len(pieces), batch)]
    done_before = 0
    for number, group in enumerate(batches):
        part = parts / f"{number:06d}"
        if (part / "tokens.parquet").is_file():
            done_before += 1
            continue
        progress(number / len(batches), f"batch {number + 1} of {len(batches)}")
        write_trace(_routed(torch, network, where, group, generate, scores), part)
    kept = str(next(network.parameters()).dtype).removeprefix("torch.")
    meta = {
        "model": name, "source": "clustersim capture hf", "dtype": kept, "device": where.type, "batch_sequences": batch,
        "sequence_tokens": length, "generated_tokens": generate, "domains": list(read), "torch": torch.__version__,
    }
    progress(1.0, "joining the batches")
    tokens, seqs, steps = _join(parts, len(batches), folder, meta)
    shutil.rmtree(parts)
    return {"path": str(folder), "tokens": tokens, "sequences": seqs, "steps": steps, "resumed": done_before,
            "seconds": time.perf_counter() - began}


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError("capture hf needs PyTorch, which is not installed: pip install 'clustersim[hf]'") from error
    return torch


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"--text {path}: cannot be read ({error.strerror})") from error


def _model(torch: Any, model: Any, device: str, dtype: str) -> tuple[Any, str, Any]:
    """(the model in evaluation mode, its name, its device)."""
    from clustersim.capture.tiny import _device

    where = _device(torch, device)
    if not isinstance(model, str | Path):
        return model.eval().to(where), type(model).__name__, where
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise InputError(f"dtype={dtype}: must be auto, bfloat16, float16 or float32")
    try:
        import transformers
    except ImportError as error:
        raise InputError("capture hf needs transformers, which is not installed: pip install 'clustersim[hf]'") from error
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(model)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        loaded = kind.from_pretrained(model, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"capture hf {model}: transformers cannot load it ({said})") from error
    return loaded.eval().to(where), str(model), where


def _tokenizer(tokenizer: str | None, model: Any, network: Any) -> Callable[[str], Tokens]:
    if tokenizer == "bytes":
        size = int(getattr(network.config, "vocab_size", 256))
        return lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int64) % (size - 3) + 3       # 0 to 2 are special
    if tokenizer is None and model is None:
        raise InputError("capture hf: an nn.Module has no tokenizer; give tokenizer=NAME, or tokenizer=bytes")
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(tokenizer or model)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        said = " ".join(str(error).split())[:160]
        raise InputError(f"capture hf: no tokenizer for {tokenizer or model} ({said}); give tokenizer=NAME or bytes") from error
    return lambda text: np.asarray(loaded(text, add_special_tokens=False, verbose=False)["input_ids"], np.int64)


def _pieces(tokens: Tokens, length: int, most: int | None) -> Iterator[Tokens]:
    count = -(-tokens.size // length)
    for i in range(count if most is None else min(most, count)):
        yield tokens[i * length : (i + 1) * length]


def _parts_folder(folder: Path, plan: dict[str, Any]) -> Path:
    """Where batches are kept until all are done; of the same plan, or new."""
    parts = folder / ".parts"
    file = parts / "plan.json"
    if file.is_file():
        if json.loads(file.read_text()) != plan:
            raise InputError(f"{parts}: holds batches of a capture with other settings; remove it, or give out=FOLDER")
    else:
        parts.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(plan))
    return parts


def _routed(torch: Any, network: Any, where: Any, group: list[tuple[str, Tokens]], generate: int, scores: bool) -> Trace:
    """The trace of one batch; sequences 0, 1, ... of the batch."""
    from clustersim.capture.recording import record

    longest = max(piece.size for _, piece in group)
    ids, mask = np.zeros((len(group), longest), np.int64), np.zeros((len(group), longest), np.int64)
    for row, (_, piece) in enumerate(group):             # padding on the left, so that generated tokens follow the text
        ids[row, longest - piece.size :], mask[row, longest - piece.size :] = piece, 1
    given = {"input_ids": torch.from_numpy(ids).to(where), "attention_mask": torch.from_numpy(mask).to(where)}
    quiet = torch.inference_mode() if hasattr(torch, "inference_mode") else nullcontext()
    with quiet, record(network, scores=scores) as recording:
        if generate:
            network.generate(**given, max_new_tokens=generate, min_new_tokens=generate, do_sample=False)
        elif getattr(network.config, "is_encoder_decoder", False):
            network(**given, decoder_input_ids=given["input_ids"])
        else:
            network(**given)
    trace = recording.trace()
    seq = np.unique(trace.seq)
    domain = {int(one): group[i % len(group)][0] for i, one in enumerate(seq)}
    return replace(trace, seq=np.searchsorted(seq, trace.seq), domain={i: domain[int(one)] for i, one in enumerate(seq)})


def _join(parts: Path, count: int, folder: Path, meta: dict[str, Any]) -> tuple[int, int, int]:
    """All batches as one trace; (tokens, sequences, steps)."""
    tokens = seqs = steps = 0
    with TraceWriter(folder) as writer:
        for number in range(count):
            part = read_trace(parts / f"{number:06d}")
            domain = {seq + seqs: name for seq, name in part.domain.items()}
            own = {"routers": part.meta.get("routers", [])}
            writer.add(replace(part, step=part.step + steps, seq=part.seq + seqs, domain=domain, meta=meta | own))
            tokens += part.n_tokens
            seqs += int(part.seq.max()) + 1
            steps += int(part.step.max()) + 1
    return tokens, seqs, steps
