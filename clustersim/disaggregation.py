"""Prefill and decoding on nodes of their own: two runs, the caches that go from one to the other, and which side limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clustersim.architecture import describe
from clustersim.cluster import build_cluster
from clustersim.config import Run, compose, whole
from clustersim.engine.gpu import time_alone
from clustersim.identity import identify
from clustersim.network import fluid
from clustersim.outcome import Result
from clustersim.playing import Progress, part_of
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
    nic_bytes_per_s: tuple[float, float]    # of all NICs of the nodes that prefill, and of those that decode, each way

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

    @property
    def nic_shares(self) -> tuple[float, float]:
        """What part of the NICs' time caches take at `rate`, on the nodes that prefill and on those that decode: what
        exchanges that use the same NICs are not told of. 0 where there are none."""
        first, then = (self.rate * self.cache_bytes / nic if nic else 0.0 for nic in self.nic_bytes_per_s)
        return first, then

    def row(self) -> dict[str, Any]:
        """All of it as one row of numbers, SI units."""
        shares = self.nic_shares
        return {
            "requests_per_s": self.rate, "limit": self.limit, "nodes_to_match": self.nodes_to_match,
            "first_token_s": self.first_token_s, "per_token_s": self.per_token_s, "prefill_requests_per_s": self.prefill_rate,
            "transfer_requests_per_s": self.transfer_rate, "decode_requests_per_s": self.decode_rate,
            "transfer_s": self.transfer_s, "cache_bytes": self.cache_bytes,
            "prefill_nic_share": shares[0], "decode_nic_share": shares[1],
            "prefill_nodes": self.prefill.summary["nodes"], "decode_nodes": self.decode.summary["nodes"],
            "prefill_run": self.prefill.run_id, "decode_run": self.decode.run_id,
        }  # fmt: skip


def disaggregated(
    prefill: Sequence[str], decode: Sequence[str], *, prompt: int, output: int,
    progress: Progress = lambda fraction, what: None,
) -> Disaggregated:  # fmt: skip
    """Serve requests of `prompt` tokens that become `output` more, on nodes that prefill and nodes that decode.

    A prompt longer than a batch, of a GPU or of those that share attention, is taken in pieces, one pass after the other. When a
    batch is through, every GPU sends its part of the caches to the GPUs that decode, in turn, over the machine's network while
    the next batch is computed.

    Args:
        prefill, decode: overrides of the two runs, of one model and topology; nodes, exchange and schedule may differ.
            Sequences in decoding hold the prompt and half of the output on average, unless `workload.context` is given.
        progress: told now and then the fraction done, 0 to 1, and what is being done.

    Raises:
        InputError: runs of two models or topologies, or what a run raises.
    """
    for key, value in (("prompt", prompt), ("output", output)):
        whole(key, value, least=1)
    before = compose(prefill)
    passes = -(-prompt // before.group_tokens)
    made = "trace.sequence" if "sequence" in before.config["trace"] else None
    first = compose([*prefill, f"workload.steps={passes}", *([f"{made}={prompt}"] if made else [])])
    context = [] if any(text.startswith("workload.context=") for text in decode) else [f"workload.context={prompt + output / 2}"]
    then = compose(["workload=decode", *decode, *context])
    for what, one, other in (("model", first.model.name, then.model.name), ("topology", first.topology, then.topology)):
        if one != other:
            raise InputError(f"{what}={other}: decoding goes on with what {what}={one} has prefilled; give both the same")
    left, right = (_played(run, part_of(progress, i, 2)) for i, run in enumerate((first, then)))
    cache = describe(first.config["model"]).cache_bytes(prompt, first.model.cache_bytes)
    requests = first.group_tokens * passes / prompt / first.group.tensor        # of a GPU's share of a batch
    transfer_s = _transfer_s(first, then, cache * requests)
    batch = requests * left.summary["gpus"]
    return Disaggregated(
        prefill=left, decode=right, cache_bytes=cache, transfer_s=transfer_s,
        prefill_rate=batch / (passes * left.summary["step_s"]), transfer_rate=batch / transfer_s,
        decode_rate=right.summary["tokens_per_s"] / output,
        first_token_s=passes * left.summary["step_s"] + transfer_s, per_token_s=right.summary["time_per_output_token_s"],
        nic_bytes_per_s=(_nics(first), _nics(then)),
    )  # fmt: skip


_KEPT: dict[str, Result] = {}           # the last two runs, by run_id, which knows when a file has changed


def _played(run: Run, progress: Progress) -> Result:
    """The run, kept: of points that differ in one side the other is played once."""
    run_id = identify(run).run_id
    result = _KEPT.pop(run_id, None) or simulate(run, progress=progress)
    if len(_KEPT) > 1:
        _KEPT.pop(next(iter(_KEPT)))
    _KEPT[run_id] = result
    return result


def _nics(run: Run) -> float:
    """Bytes/s out of all NICs of a side."""
    cluster = build_cluster(run.topology, json.loads(json.dumps(run.config["topology"])))
    return float(sum(link.capacity for link in cluster.links if link.kind == "nic_up"))


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
