"""Which layers a pipeline stage holds, and how many micro-batches of them it keeps at once. Closed forms; plays no schedule."""

from __future__ import annotations

from clustersim.pick import did_you_mean
from clustersim.types import InputError

ORDERS = {          # of forward and backward passes in a pipeline
    "gpipe": "all forward, then all backward (arXiv 1811.06965)",
    "1f1b": "one forward, one backward (arXiv 2104.04473)",
    "interleaved": "one forward, one backward, over several chunks of layers per stage (arXiv 2104.04473)",
    "zero_bubble": "as 1f1b, gradients of weights fill the bubbles: ZB-H1 (arXiv 2401.10241)",
    "dualpipe": "from both ends at once, every stage has two chunks (github:deepseek-ai/DualPipe)",
}


def chunks_of(n_layers: int, stages: int, virtual: int = 1) -> tuple[range, ...]:
    """The layers of every chunk, in order; chunk c is on stage c mod `stages`.

    Chunks are equally long; what is missing is taken off the last one, then off the first, then off those before the last:
    the ends have the tables beside. So the 126 layers of Llama 3.1 405B are 8 to a stage and 7 at both ends (arXiv 2407.21783).

    Raises:
        InputError: more chunks than layers and two ends without any.
    """
    chunks = stages * virtual
    if chunks > n_layers + (2 if n_layers > 1 and chunks > 2 else 0):
        most = max(1, (n_layers + 2) // virtual)
        raise InputError(
            f"parallel.pipeline={stages} x virtual={virtual}: {chunks} chunks are more than the {n_layers} layers; "
            f"at most pipeline={most}" + (f" with virtual={virtual}" if virtual > 1 else "")
        )
    length = -(-n_layers // chunks)
    sizes = [length] * chunks
    order = [chunks - 1, 0, *range(chunks - 2, 0, -1)]
    for i in range(length * chunks - n_layers):
        sizes[order[i % chunks]] -= 1
    starts = [sum(sizes[:c]) for c in range(chunks)]
    return tuple(range(start, start + size) for start, size in zip(starts, sizes, strict=True))


def held_by(stage: int, stages: int, *, order: str, virtual: int = 1, micro_batches: int) -> dict[int, int]:
    """The chunks that a stage has, and of how many micro-batches at once it keeps the activations of each, at its peak.

    With v chunks each, the first stage keeps v p + p - 1 of them, its share of the layers times p (1 + (p - 1) / (p v))
    (arXiv 2205.05198); with `dualpipe` every stage keeps p + 1 of its two chunks together.

    Raises:
        InputError: no such order, or chunks that it does not have.
    """
    if order not in ORDERS:
        raise InputError(f"order={order}: must be one of {', '.join(ORDERS)}{did_you_mean(order, ORDERS)}")
    if virtual > 1 and order != "interleaved":
        raise InputError(f"parallel.virtual={virtual}: order={order} has one chunk per stage; order=interleaved takes more")
    if order == "gpipe":
        return {stage: micro_batches}
    if order == "dualpipe":
        if stages % 2:
            raise InputError(f"parallel.pipeline={stages}: order=dualpipe needs an even number of stages")
        each = -(-micro_batches // 2)           # from either end
        return {stage: min(each, stages - stage), stages - 1 - stage: min(each, stage + 1)}
    if order != "interleaved" or virtual == 1:
        return {stage: min(micro_batches, stages - stage)}
    warm = min(2 * (stages - stage - 1) + (virtual - 1) * stages + 1, micro_batches * virtual)
    chunks = [i // stages % virtual for i in range(warm)]
    return {stage + stages * chunk: min(micro_batches, chunks.count(chunk)) for chunk in range(virtual)}
