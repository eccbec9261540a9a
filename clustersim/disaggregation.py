"""Prefill and decoding on nodes of their own: two runs, the caches that go from one to the other, and which side limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import build_cluster
from clustersim.config import Run, compose, whole
from clustersim.engine.gpu import time_alone
from clustersim.network import fluid
from clustersim.outcome import Result
from clustersim.simulation import simulate
from clustersim.types import InputError, Transfers, independent


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Disaggregated:
    """What a cluster serves whose nodes prefill or decode. Rates are requests per second of the whole cluster."""

    prefill: Result
    decode: Result
    cache_bytes: float              # of one request's prompt
    transfer_s: float               # the caches of one batch of prefill, from its GPUs to those that decode
    prefill_rate: float             # what each part could serve by itself
    transfer_rate: float
    decode_rate: float
    first_token_s: float            # all pieces of the prompt, then its cache on the way
    per_token_s: float

    @property
    def rate(self) -> float:
        """Requests per second that all parts can keep up with."""
        return min(self.prefill_rate, self.transfer_rate, self.decode_rate)

    @property
    def limit(self) -> str:
        """The part that limits: prefill, transfer or decode."""
        rates = {"prefill": self.prefill_rate, "transfer": self.transfer_rate, "decode": self.decode_rate}
        return min(rates, key=lambda part: rates[part])

    @property
    def nodes_to_match(self) -> float:
        """Nodes that prefill for each one that decodes, for both sides to keep up with each other."""
        prefills, decodes = (int(side.summary["nodes"]) for side in (self.prefill, self.decode))
        return (self.decode_rate / decodes) / (self.prefill_rate / prefills)


def disaggregated(prefill: Sequence[str], decode: Sequence[str], *, prompt: int, output: int) -> Disaggregated:
    """Serve requests of `prompt` tokens that become `output` more, on nodes that prefill and nodes that decode.

    A prompt longer than a GPU's batch (`workload.tokens_per_gpu`) is taken in pieces, one pass after the other. When a batch is
    through, every GPU sends the caches of its prompts to the GPUs that decode, in turn, over the machine's network while the next
    batch is computed.

    Args:
        prefill, decode: overrides of the two runs, of one model and topology; nodes, exchange and schedule may differ.
            Sequences in decoding hold the prompt and half of the output on average, unless `workload.context` is given.

    Raises:
        InputError: runs of two models or topologies, or what a run raises.
    """
    for key, value in (("prompt", prompt), ("output", output)):
        whole(key, value, least=1)
    before = compose(prefill)
    passes = -(-prompt // before.tokens_per_gpu)
    made = "trace.sequence" if "sequence" in before.config["trace"] else None
    first = compose([*prefill, f"workload.steps={passes}", *([f"{made}={prompt}"] if made else [])])
    context = [] if any(text.startswith("workload.context=") for text in decode) else [f"workload.context={prompt + output / 2}"]
    then = compose(["workload=decode", *decode, *context])
    for what, one, other in (("model", first.model.name, then.model.name), ("topology", first.topology, then.topology)):
        if one != other:
            raise InputError(f"{what}={other}: decoding goes on with what {what}={one} has prefilled; give both the same")
    left, right = simulate(first), simulate(then)
    cache = describe(first.config["model"]).cache_bytes(prompt, first.model.cache_bytes)
    requests = first.tokens_per_gpu * passes / prompt           # of a GPU's batch
    transfer_s = _transfer_s(first, then, cache * requests)
    batch = requests * left.summary["gpus"]
    return Disaggregated(
        prefill=left, decode=right, cache_bytes=cache, transfer_s=transfer_s,
        prefill_rate=batch / (passes * left.summary["step_s"]), transfer_rate=batch / transfer_s,
        decode_rate=right.summary["tokens_per_s"] / output,
        first_token_s=passes * left.summary["step_s"] + transfer_s, per_token_s=right.summary["time_per_output_token_s"],
    )  # fmt: skip


def _transfer_s(first: Run, then: Run, nbytes: float) -> float:
    """Seconds that `nbytes` from every GPU of the one take to those of the other, all at once, on a machine that has both."""
    fields = json.loads(json.dumps(first.config["topology"]))
    nodes = fields["nodes"], then.config["topology"]["nodes"]
    cluster = build_cluster(first.topology, fields | {"nodes": sum(nodes)})
    return time_alone(cluster, fluid, caches(nodes[0] * cluster.gpus_per_node, nodes[1] * cluster.gpus_per_node, nbytes))


def caches(sources: int, targets: int, nbytes: float) -> Transfers:
    """What each of the first GPUs sends to those behind them: its bytes in turn, as evenly as whole shares go."""
    pieces = targets // np.gcd(sources, targets)                # so that every target gets as much as any other
    src = np.repeat(np.arange(sources), pieces)
    dst = sources + np.arange(src.size) % targets
    return independent(src, dst, np.full(src.size, nbytes / pieces))
