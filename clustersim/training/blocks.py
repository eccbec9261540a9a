"""How long a pipeline device takes for a task: the passes of a stage played on the GPUs of an expert group. Knows no pipeline.

What is alike is played once: stages whose layers have the same parts, choices and placement, and micro-batches with the same
routing. All GPUs of a group begin a pass together; the first exchange would let nobody go on before the last of them anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.collectives import Wires
from clustersim.engine.launches import Launches
from clustersim.engine.machines import Machine
from clustersim.engine.passes import Habits, Passes
from clustersim.engine.pipelines import Task
from clustersim.engine.program import COMPUTE, Op, Ran, Work, exposed, play_program
from clustersim.model import Model
from clustersim.parallel import Parallel
from clustersim.sending import Traffic
from clustersim.training import programs
from clustersim.training.beside import NONE, Aside, Beside
from clustersim.training.layers import Batch, Own, own_passes, routed_passes, routed_sends, unembedding
from clustersim.types import Transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A task of a pipeline device. Seconds; all but the first are means over the GPUs of the group, and add up to it."""

    seconds: float          # until the last GPU is through
    computed_s: float
    sent_s: float           # collectives of tensor, context and expert-tensor groups
    exchanged_s: float      # exchanges that nothing hides: the GPU's own bytes on their way
    waited_s: float         # for other GPUs: in exchanges, and for the last to be through
    launched_s: float = 0.0 # for the host, which has not launched the next kernel
    sends_late_s: float = 0.0       # by which what is on its way beside it (`beside.Beside`) comes later than alone
    reduce_late_s: float = 0.0
    gather_late_s: float = 0.0

    def between(self, other: Block, share: float) -> Block:
        """Part of the way from here to another."""
        return Block(**{
            each.name: (1 - share) * getattr(self, each.name) + share * getattr(other, each.name) for each in fields(Block)
        })  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stages:
    """What the tasks of a pipeline are made of."""

    model: Model
    parallel: Parallel
    batch: Batch
    layers: tuple[range, ...]                       # of each stage
    traffic: Callable[[int, int], Traffic]          # of a layer with routed experts, in a routing
    alike: Callable[[int], int]                     # the first layer that costs the same as this one
    routings: int                                   # that micro-batches take in turn
    cluster: Cluster                                # of one expert group
    network: Callable[..., Any]
    wires: Wires
    machine: Machine                                # with all SMs
    beside: Machine                                 # with those that exchanges leave
    hand_over: Transfers                            # what two overlapping tasks leave to other stages
    wait_s: float                                   # before an exchange begins beside another micro-batch
    recompute: bool                                 # activations are made once more on the way back
    habits: Habits                                  # of the framework
    partitioned: bool                               # overlapping tasks never have the SMs of exchanges; else while none runs
    launches: Callable[[int], tuple[Launches, Launches]] | None     # of a layer and of its routed experts; None: no host counts
    aside: Callable[[Beside], Sequence[Aside]] | None = None        # the flows that share links with exchanges; None: none do


class Blocks:
    """Tasks and how long they take; each distinct one is played once."""

    def __init__(self, stages: Stages, progress: Callable[[int], None] = lambda played: None) -> None:
        self._stages, self._progress = stages, progress
        self._played: dict[Any, Block] = {}
        self._own: dict[tuple[int, bool], Own] = {}
        self._traffic: dict[tuple[int, int], Traffic] = {}
        self._experts: dict[tuple[int, int, bool], Own] = {}
        self.solves = self.events = 0

    @property
    def played(self) -> int:
        """How many have been played."""
        return len(self._played)

    def of(self, tasks: tuple[Task, ...], beside: Beside = NONE) -> Block:
        """The block of one task, or of two that overlap, the forward one first; with what is on its way beside it."""
        beside = beside if self._stages.aside is not None else NONE
        key = beside, tuple((task.kind, self._signature(task.stage), task.batch % self._stages.routings) for task in tasks)
        if key not in self._played:
            self._played[key] = self._play(tasks, beside)
            self._progress(len(self._played))
        return self._played[key]

    def _signature(self, stage: int) -> tuple[int, ...]:
        made = tuple(self._stages.alike(layer) for layer in self._stages.layers[stage])
        return (*made, programs.HEAD) if self._last(stage) else made

    def _last(self, stage: int) -> bool:
        return stage == len(self._stages.layers) - 1

    def _play(self, tasks: tuple[Task, ...], beside: Beside) -> Block:
        s, routed = self._stages, set(self._stages.model.moe_layers)
        ahead = next((task for task in tasks if task.kind == "F"), None)
        back = next((task for task in tasks if task.kind != "F"), None)
        if ahead is not None and back is not None:
            ops = programs.both(
                s.layers[ahead.stage], s.layers[back.stage], routed, head_ahead=self._last(ahead.stage),
                head_back=self._last(back.stage),
            )  # fmt: skip
            if s.recompute:
                ops = _behind(programs.forward(s.layers[back.stage], routed, head=False, batch=programs.BACKWARD), ops)
        elif ahead is not None:
            ops = programs.forward(s.layers[ahead.stage], routed, head=self._last(ahead.stage))
        else:
            assert back is not None
            if back.kind == "W":
                return self._weights(back)
            ops = programs.backward(
                s.layers[back.stage], routed, head=self._last(back.stage), weights=back.kind == "B", again=s.recompute
            )
        if not ops:                                         # a stage with nothing but the embedding
            return Block(seconds=0.0, computed_s=0.0, sent_s=0.0, exchanged_s=0.0, waited_s=0.0)
        routing = {programs.FORWARD: ahead or back, programs.BACKWARD: back or ahead}

        def work_of(layer: int, batch: int) -> Work:
            task = routing[batch]
            assert task is not None
            return self._work(layer, task.batch % s.routings, beside=len(tasks) > 1)

        others = s.aside(beside) if s.aside is not None and beside else ()
        if len(others) == 1 and len(beside.sends) == 1 and _before_exchanges(ops, work_of) >= others[0].alone_s:
            return self.of(tasks)
        ran = play_program(s.cluster, s.network, ops, work_of, beside=[each.in_turn for each in others])
        self.solves, self.events = self.solves + ran.solves, self.events + ran.events
        block = self._summed(
            ops, ran, lambda op: getattr(routing[op.batch], "batch", 0) % s.routings, beside=len(tasks) > 1
        )
        late = {each.what: end - each.alone_s for each, end in zip(others, ran.beside, strict=True)}
        return replace(block, **{f"{what}_late_s": by for what, by in late.items() if by > 1e-12 * ran.step_s})     # not rounding

    def _summed(self, ops: Sequence[Op], ran: Ran, routing_of: Callable[[Op], int], *, beside: bool) -> Block:
        computing = [i for i, op in enumerate(ops) if op.stream == COMPUTE]
        busy = (ran.end[computing] - ran.start[computing]).sum(axis=0)
        sent = sum((self._sent(ops[i], routing_of(ops[i]), beside) for i in computing), np.zeros(busy.size))
        stood = exposed(ops, ran)
        standing, waited = stood.sum(axis=0), np.zeros(busy.size)
        for i, account in ran.exchanges.items():
            waited += np.minimum(account.wait_s, stood[i])
        last = ran.step_s - busy - standing                 # until the last GPU is through
        last = np.where(np.abs(last) < 1e-12 * ran.step_s, 0.0, last)       # of the last itself only rounding is left
        late = self._late(ops, ran)
        return Block(
            seconds=ran.step_s + late, computed_s=float((busy - sent).mean()), sent_s=float(sent.mean()),
            exchanged_s=float((standing - waited).mean()), waited_s=float((waited + last).mean()), launched_s=late,
        )  # fmt: skip

    def _late(self, ops: Sequence[Op], ran: Ran) -> float:
        """Seconds by which a pass ends later because its host launches one operation after the other.

        The host runs ahead as far as it can, into the pass before too. Before it can launch experts it must know how many tokens
        each has, and for that the router has to be through: it has run ahead of nothing there.

        Source: github:NVIDIA/Megatron-LM core/transformer/moe/token_dispatcher.py (`_maybe_dtoh_and_synchronize`).
        """
        launched = [self._launched(op.layer, op.part) if op.stream == COMPUTE else 0.0 for op in ops]
        synced = [i for i, op in enumerate(ops) if op.part == "dispatch"]
        host, late = -sum(launched[: synced[0] if synced else len(ops)]), 0.0
        for i, op in enumerate(ops):
            if op.part == "dispatch":
                host = max(host, max((float(ran.end[before].mean()) for before in op.after), default=0.0) + late)
            elif launched[i]:
                host += launched[i]
                late = max(late, host - float(ran.end[i].mean()))
        return max(late, sum(launched) - ran.step_s, 0.0)

    def _launched(self, layer: int, part: str) -> float:
        """Seconds that the host needs for an operation of the compute stream."""
        if self._stages.launches is None:
            return 0.0
        own, experts = self._stages.launches(layer)
        return float(_of(experts if part.startswith("experts_") else own, part[-1]))

    def _sent(self, op: Op, routing: int, beside: bool) -> Any:
        if op.layer == programs.HEAD:
            return 0.0
        if op.part.startswith("experts_"):
            return _of(self._experts[self._stages.alike(op.layer), routing, beside].sent, op.part[-1])
        return _of(self._own_of(op.layer, beside).sent, op.part[-1])

    def _weights(self, task: Task) -> Block:
        """The gradients of a stage's weights: nothing is exchanged."""
        s = self._stages
        layers = [*s.layers[task.stage], *([programs.HEAD] if self._last(task.stage) else [])]
        computed, sent = np.zeros(s.cluster.n_gpus), np.zeros(s.cluster.n_gpus)
        for layer in layers:
            work = self._work(layer, task.batch % s.routings, beside=False)
            computed = computed + work.seconds["own_w"] + work.seconds.get("experts_w", 0.0)
            if layer != programs.HEAD:
                sent = sent + self._own_of(layer, False).sent.weight_s
        total = float(computed.max())
        host = sum(self._launched(layer, "own_w") + self._launched(layer, "experts_w") for layer in layers)
        late = max(0.0, host - total)
        return Block(
            seconds=total + late, computed_s=float((computed - sent).mean()), sent_s=float(sent.mean()), exchanged_s=0.0,
            waited_s=float((total - computed).mean()), launched_s=late,
        )

    def _work(self, layer: int, routing: int, *, beside: bool) -> Work:
        """What there is to do in a layer, both ways; `beside` another pass, computing has fewer SMs."""
        if not beside or layer == programs.HANDOVER:
            return self._alone(layer, routing, beside=False)
        work = self._alone(layer, routing, beside=True)
        if not self._stages.partitioned:
            work = replace(work, seconds=self._alone(layer, routing, beside=False).seconds, beside=work.seconds)
        if self._stages.wait_s:
            later = {part: replace(one, release=one.release + self._stages.wait_s) for part, one in work.transfers.items()}
            work = replace(work, transfers=later)
        return work

    def _alone(self, layer: int, routing: int, *, beside: bool) -> Work:
        """The same with all SMs, or with those that an exchange leaves throughout."""
        s = self._stages
        machine = s.beside if beside else s.machine
        if layer == programs.HANDOVER:
            return Work(seconds={}, transfers={"hand_over": s.hand_over})
        if layer == programs.HEAD:
            return Work(seconds=_named("own", unembedding(s.model, s.batch, s.parallel, machine, s.cluster.n_gpus)), transfers={})
        own = self._own_of(layer, beside)
        seconds = _named("own", own.computed + own.sent)
        if layer not in s.model.moe_layers:
            return Work(seconds=seconds, transfers={})
        same = s.alike(layer)
        if (same, routing) not in self._traffic:
            self._traffic[same, routing] = s.traffic(same, routing)
        sent = self._traffic[same, routing]
        if (same, routing, beside) not in self._experts:
            one, n = (s.model, sent.rows, sent.gpu_of), s.cluster.n_gpus
            self._experts[same, routing, beside] = Own(
                computed=routed_passes(*one, n, machine, s.parallel.expert_tensor, s.habits),
                sent=routed_sends(*one, n, s.parallel, s.wires),
            )
        there, home = sent.dispatch, sent.combine
        transfers = {"dispatch": there, "combine": home, "back_dispatch": there, "back_combine": home}
        experts = self._experts[same, routing, beside]
        return Work(seconds=seconds | _named("experts", experts.computed + experts.sent), transfers=transfers)

    def _own_of(self, layer: int, beside: bool) -> Own:
        s, same = self._stages, self._stages.alike(layer)
        if (same, beside) not in self._own:
            self._own[same, beside] = own_passes(
                s.model.layers[same], s.model, s.batch, s.parallel, s.wires, s.beside if beside else s.machine, s.cluster.n_gpus,
                s.habits,
            )  # fmt: skip
        return self._own[same, beside]


def _before_exchanges(ops: Sequence[Op], work_of: Callable[[int, int], Work]) -> float:
    """Seconds that no GPU enters an exchange before; inf where none does."""
    first = next((op for op in ops if op.stream != COMPUTE), None)
    if first is None:
        return float("inf")
    computed = [work_of(op.layer, op.batch).seconds[op.part] for op in ops[: max(first.after, default=-1) + 1]]
    return float(sum(computed, np.zeros(1)).min())


def _named(name: str, passes: Passes) -> dict[str, Any]:
    return {f"{name}_f": passes.forward_s, f"{name}_i": passes.input_s, f"{name}_w": passes.weight_s}


def _of(passes: Passes | Launches, which: str) -> Any:
    return {"f": passes.forward_s, "i": passes.input_s, "w": passes.weight_s}[which]


def _behind(first: Sequence[Op], then: Sequence[Op]) -> list[Op]:
    """One program after the other."""
    shifted = [
        Op(stream=op.stream, part=op.part, layer=op.layer, batch=op.batch, after=tuple(i + len(first) for i in op.after))
        for op in then
    ]
    return [*first, *shifted]
