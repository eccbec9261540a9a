"""A training step from a run: its parts made and found to fit, its pipeline played, its gradients and optimiser added."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from clustersim import network as networks
from clustersim.architecture import describe
from clustersim.assembling import MEASURED_BATCH, assemble
from clustersim.cluster import Cluster, build_cluster
from clustersim.config import Run, flag, positive, whole
from clustersim.engine import machines
from clustersim.engine.activations import LATENTS, OUTPUTS, Keeping
from clustersim.engine.blocks import PRECISIONS
from clustersim.engine.collectives import Wires, send_s, wires_of
from clustersim.engine.launches import FUSED, NOTHING, Launches, expert_launches, head_launches, own_launches
from clustersim.engine.machines import Machine
from clustersim.engine.memory import Load, Memory, need
from clustersim.engine.passes import Habits
from clustersim.engine.pipeline_play import Flow, play_pipeline
from clustersim.engine.pipelines import Pipeline, Task
from clustersim.engine.stages import chunks_of
from clustersim.exchange.software import sms_held, wait_beside
from clustersim.kernels import load_kernel
from clustersim.model import Model
from clustersim.network import packets
from clustersim.parallel import Parallel, parallel_from
from clustersim.pick import pick
from clustersim.playing import Progress
from clustersim.results.counting import LayerCounts
from clustersim.sending import Traffic, same_layers, traffic
from clustersim.training.beside import Aside, Beside, asides_of, ways_of
from clustersim.training.blocks import Block, Blocks, Stages
from clustersim.training.checks import check_beside, check_experts, check_words, first_built, pipeline_of, told_of_group
from clustersim.training.folding import folded, leaders
from clustersim.training.gradients import WEIGHT, Update, exposed_update, held, update
from clustersim.training.layers import Batch
from clustersim.training.sharing import Shared, is_ahead, is_back
from clustersim.types import Floats, InputError, Transfers, independent

OFFERS = {              # what may be changed where a step does not fit
    "gpus": "{} GPUs", "tensor": "parallel.tensor={}", "pipeline": "parallel.pipeline={}", "zero": "parallel.zero={}",
    "micro_batch": "workload.micro_batch={}", "recompute": "workload.recompute={}",
}  # fmt: skip
BY_COUNT = ("dragonfly", "fat_tree")    # fabrics of so many switches, however few GPUs there are


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trained:
    """A training step as it was played. Seconds; arrays over pipeline devices."""

    model: Model
    parallel: Parallel
    batch: Batch
    micro_batches: int
    memory: Memory
    gpu_memory: float                               # bytes of a GPU
    layers: tuple[range, ...]
    pipeline: Pipeline
    flow: Flow
    blocks: tuple[tuple[Block, ...], ...]           # of every task of every device
    updates: tuple[Update, ...]
    reduce_s: Floats                                # what of the gradients is exposed
    gather_s: Floats                                # what of the weights is exposed
    step_s: float
    counts: tuple[LayerCounts, ...]                 # of the layers whose routing was played
    played: int                                     # distinct tasks that were played
    group_gpus: int                                 # on so many GPUs
    solves: int
    events: int
    notes: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Of the step."""
        return self.micro_batches * self.batch.sequences * self.batch.sequence * self.parallel.data


def train(run: Run, progress: Progress = lambda fraction, what: None) -> Trained:
    """Play one training step.

    Raises:
        InputError: sizes that do not fit each other, the model or the machine; whatever the run's parts raise.
    """
    workload, model = run.config["workload"], run.model
    gpus, per_node = _gpus(run)
    parallel = parallel_from(run.config["parallel"], gpus, model.n_experts)
    batch, micro_batches = _batch(workload, parallel)
    layers = _layers(run, parallel)
    check_words(run)
    order = str(run.config["parallel"]["order"])
    pipeline = pipeline_of(run, parallel, micro_batches)
    small = first_built(lambda n: _cluster(run, per_node, nodes=n), min(2, gpus // per_node), gpus // per_node)
    wires = wires_of(small)
    if model.n_moe_layers:
        check_experts(model, parallel, per_node)
    memory = _memory(run, parallel, batch, micro_batches, small)
    stages, counts = _stages(run, parallel, batch, layers, pipeline, small, wires)
    if model.n_moe_layers:
        networks.when_compiling(
            lambda: progress(0.0, "compiling the network solver, once for this installation"), run.config["network"]["name"]
        )
    total = _distinct(pipeline, stages)
    blocks = Blocks(stages, lambda played: progress(min(0.99, played / total), f"{played} of {total} kinds of passes"))
    weights = [held(model, mine, layers, parallel) for mine in pipeline.held]
    twins = [parallel.pipeline - 1 - 2 * device if order == "dualpipe" else None for device in range(parallel.pipeline)]
    rounds = micro_batches // (parallel.pipeline if order in ("interleaved", "combined") else 1)
    hide, sender = flag("workload.hide_gradients", workload["hide_gradients"]), _sender(parallel, batch, model, wires)
    shared = Shared(
        pipeline, blocks, parallel, per_node, held=weights, twins=twins, rounds=rounds, send_s=sender, hide=hide,
    )  # fmt: skip
    flow = play_pipeline(pipeline, lambda tasks: blocks.of(tasks).seconds, sender, shared.beside)
    every = tuple(tuple(mine[i] for i in range(len(mine))) for mine in shared.blocks)
    updates = tuple(
        update(mine, parallel, wires, stages.machine, twin=twin,
               gradient_bytes=positive("workload.gradient_bytes", workload["gradient_bytes"]))
        for mine, twin in zip(weights, twins, strict=True)
    )  # fmt: skip
    left = [
        exposed_update(
            u, parallel.zero, rounds, _passes(every[d], tasks, is_ahead), _passes(every[d], tasks, is_back), hide=hide,
            late=shared.late(d),
        )
        for d, (u, tasks) in enumerate(zip(updates, pipeline.tasks, strict=True))
    ]  # fmt: skip
    reduce_s, gather_s = (np.array(values) for values in zip(*left, strict=True))
    ends = np.array([ended[-1] for ended in flow.ended])
    after = reduce_s + np.array([u.optimiser_s for u in updates]) + gather_s
    return Trained(
        model=model, parallel=parallel, batch=batch, micro_batches=micro_batches, memory=memory,
        gpu_memory=small.gpu.memory, layers=layers, pipeline=pipeline, flow=flow, blocks=every, updates=updates,
        reduce_s=reduce_s, gather_s=gather_s, step_s=float((ends + after).max()), counts=tuple(counts), played=blocks.played,
        group_gpus=stages.cluster.n_gpus, solves=blocks.solves, events=blocks.events + flow.events,
        notes=_notes(run, stages, parallel, blocks, micro_batches),
    )  # fmt: skip


def _gpus(run: Run) -> tuple[int, int]:
    """GPUs in all and per node."""
    topology = run.config["topology"]
    nodes = whole("topology.nodes", topology["nodes"], least=1)
    per_node = whole("topology.gpus_per_node", topology["gpus_per_node"], least=1)
    return nodes * per_node, per_node


def _batch(workload: Mapping[str, Any], parallel: Parallel) -> tuple[Batch, int]:
    """A micro-batch, and how many a data parallel group takes in a step."""
    sequences = whole("workload.micro_batch", workload["micro_batch"], least=1)
    sequence = whole("workload.sequence", workload["sequence"], least=1)
    in_all = whole("workload.global_batch", workload["global_batch"], least=1)
    each = sequences * parallel.data
    if in_all % each:
        near = max(1, round(in_all / each)) * each
        raise InputError(
            f"workload.global_batch={in_all}: must be a multiple of micro_batch {sequences} x {parallel.data} data parallel "
            f"groups = {each}; nearest that is: {near}"
        )
    pieces = parallel.context * (parallel.tensor if parallel.sequence_parallel else 1)
    if sequence * sequences % pieces:
        near = -(-sequence // pieces) * pieces
        raise InputError(f"workload.sequence={sequence}: does not divide over {pieces} GPUs; nearest that does: {near}")
    return Batch(sequences=sequences, sequence=sequence, context=parallel.context), in_all // each


def _cluster(run: Run, per_node: int, *, nodes: int) -> Cluster:
    return build_cluster(run.topology, {**run.config["topology"], "nodes": nodes, "gpus_per_node": per_node})


def _stages(
    run: Run, parallel: Parallel, batch: Batch, layers: tuple[range, ...], pipeline: Pipeline, small: Cluster, wires: Wires
) -> tuple[Stages, list[LayerCounts]]:
    """What the pipeline's tasks are made of; `counts` is filled as layers are played."""
    model, counts = run.model, list[LayerCounts]()
    name, options = run.options("network")
    if not model.n_moe_layers:
        cluster = first_built(lambda n: _cluster(run, 1, nodes=1) if n == 1 else small, 1, 2)
        first: dict[Any, int] = {}
        alike = [first.setdefault(model.layers[layer], layer) for layer in range(model.n_layers)]
        machine = _machine(run, cluster, 0)

        def nobody(layer: int, routing: int) -> Traffic:
            raise AssertionError("a model without experts sends nothing")

        return Stages(
            model=model, parallel=parallel, batch=batch, layers=layers, traffic=nobody, alike=alike.__getitem__, routings=1,
            cluster=cluster, network=pick(networks, name, **options), wires=wires, machine=machine, beside=machine,
            hand_over=_hand_over(0.0, 1), wait_s=0.0, recompute=_recompute(run), launches=_launches(run, parallel),
            partitioned=False, habits=_habits(run),
        ), counts  # fmt: skip
    try:
        parts = assemble(_group_run(run, parallel, batch, small.gpus_per_node))
    except InputError as error:
        raise told_of_group(error, run) from error
    if parallel.expert_tensor > 1:
        parts = replace(parts, exchange=folded(parts.exchange, parallel.expert_tensor))
    steps = [replace(parts, workload=one, placements=placed) for one, placed in zip(
        parts.stream.steps, parts.plan.placements, strict=True
    )]  # fmt: skip
    same = same_layers(parts, parts.rule)
    for layer, other in enumerate(same):
        if model.layers[layer] != model.layers[other]:
            same[layer] = layer
    first = {}
    same = [first.setdefault((model.layers[i], same[i] if i in model.moe_layers else -1), i) for i in range(model.n_layers)]

    def sent(layer: int, routing: int) -> Traffic:
        found = traffic(steps[routing], layer, parts.rule)
        counts.append(found.counts)
        if name == "packet":
            packets.need_few(parts.cluster, (found.dispatch, found.combine), 2 * len(set(same)) * len(steps), options["chunk"])
        return found

    kept, group = sms_held(*run.options("exchange"), parts.cluster), parts.cluster.n_gpus
    if not check_beside(run, pipeline, parts.cluster, kept):
        kept = 0
    return Stages(
        model=model, parallel=parallel, batch=batch, layers=layers, traffic=sent, alike=same.__getitem__, routings=len(steps),
        cluster=parts.cluster, network=parts.network, wires=wires, machine=_machine(run, parts.cluster, 0),
        beside=_machine(run, parts.cluster, kept), wait_s=_late(run, parts.run.tokens_per_gpu), recompute=_recompute(run),
        launches=_launches(run, parallel), habits=_habits(run), partitioned=run.config["workload"]["framework"] is None,
        hand_over=_hand_over(2 * _sender(parallel, batch, model, wires)(0, 1) if parallel.pipeline > 1 else 0.0, group),
        aside=_asides(run, parallel, batch, parts.cluster, wires),
    ), counts  # fmt: skip


def _group_run(run: Run, parallel: Parallel, batch: Batch, per_node: int) -> Run:
    """The run of one expert group: its GPUs alone, each with its share of a micro-batch."""
    group, cut = parallel.expert * parallel.expert_tensor, parallel.expert_tensor
    nodes, inside = max(1, group // per_node), min(per_node, group)
    tokens = batch.tokens // (parallel.tensor if parallel.sequence_parallel else 1)
    config = {**run.config, "memory": "ignore"}                 # the step's own memory has been judged
    config["topology"] = {**config["topology"], "nodes": nodes, "gpus_per_node": inside}
    config["workload"] = {
        "phase": "prefill", "tokens_per_gpu": tokens, "encoder_inputs": 0,
        **{key: config["workload"][key] for key in ("steps", "deal", "domain_steps")},
    }  # fmt: skip
    if cut > 1:
        slots = leaders(config["placement"]["slots"], parallel.expert, cut, run.model.n_experts)
        config["placement"] = {**config["placement"], "slots": slots}
    return replace(run, tokens_per_gpu=tokens, group_tokens=tokens, config=config)


def _machine(run: Run, cluster: Cluster, sms: int) -> Machine:
    name, options = run.options("compute")
    gpu, gemm = cluster.gpu, run.model.gemm
    if name == "none":
        return machines.none()
    if name == "roofline":
        return machines.roofline(gpu, gemm)
    if name == "kernels":
        return machines.kernels(gpu, gemm, options["tiles"], options["constants"], sms + options["sms_taken"],
                                run.config["workload"]["framework"], str(run.config["workload"]["scaling"]))
    raise InputError(f"compute={name}: training knows none, roofline and kernels")


def _late(run: Run, tokens: int) -> float:
    """Seconds by which an exchange begins late beside another micro-batch: as measured, less where the micro-batch is smaller.

    Measured in DeepSeek's own framework; what Megatron-LM gains by its overlap leaves no room for it.
    """
    if run.config["workload"]["framework"] is not None:
        return 0.0
    return wait_beside(*run.options("exchange")) * min(1.0, tokens / MEASURED_BATCH)


def _launches(run: Run, parallel: Parallel) -> Callable[[int], tuple[Launches, Launches]] | None:
    """What the host launches for a layer (below 0: the unembedding), without its routed experts and for them."""
    workload, model = run.config["workload"], run.model
    if workload["framework"] is None or run.config["compute"]["name"] != "kernels":
        return None
    precision, graphs, exchange = PRECISIONS[model.gemm], str(workload["cuda_graphs"]), run.options("exchange")[0]
    slots = model.n_experts / parallel.expert

    @cache
    def of(layer: int) -> tuple[Launches, Launches]:
        if layer < 0:
            return head_launches(graphs), NOTHING
        own = own_launches(model.layers[layer], model.hidden, precision, exchange=exchange, graphs=graphs)
        if layer not in model.moe_layers:
            return own, NOTHING
        return own, expert_launches(slots, precision, exchange=exchange, graphs=graphs, biased=model.expert_biases)

    return of


def _layers(run: Run, parallel: Parallel) -> tuple[range, ...]:
    """The layers of every stage: as `chunks_of` says, or as the config does."""
    n_layers, stages, given = run.model.n_layers, parallel.pipeline * parallel.virtual, run.config["parallel"]["stage_layers"]
    if given is None:
        return chunks_of(n_layers, parallel.pipeline, parallel.virtual)
    whole_numbers = isinstance(given, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in given)
    if not whole_numbers or len(given) != stages or sum(given) != n_layers:
        raise InputError(
            f"parallel.stage_layers={given}: must be a number of layers for each of {stages} stages, {n_layers} in all; "
            f"null is {[len(one) for one in chunks_of(n_layers, parallel.pipeline, parallel.virtual)]}"
        )
    ends = np.cumsum([0, *given]).tolist()
    return tuple(range(begin, end) for begin, end in itertools.pairwise(ends))


def _memory(run: Run, parallel: Parallel, batch: Batch, micro_batches: int, cluster: Cluster) -> Memory:
    """What a step needs on its fullest GPU; refused where it does not fit, unless `memory=ignore`."""
    workload = run.config["workload"]
    narrow = machines.precision_of(run.model.gemm, str(workload["scaling"])).activation_bytes
    load = Load(
        phase="training", micro_batch=batch.sequences, sequence=batch.sequence, micro_batches=micro_batches,
        order=str(run.config["parallel"]["order"]), keeping=Keeping(recompute=str(workload["recompute"]), linear=narrow),
        gradients=positive("workload.gradient_bytes", workload["gradient_bytes"]), optimiser=str(workload["optimiser"]),
        exchange=run.options("exchange")[0],
    )  # fmt: skip
    found = need(describe(run.config["model"]), parallel, load)
    if run.config["memory"] == "check":
        found.check(cluster.gpu.memory, name=run.topology, offers=OFFERS)
    return found


def _recompute(run: Run) -> bool:
    """Whether layers are run once more."""
    return bool(run.config["workload"]["recompute"] == "full")


def _habits(run: Run) -> Habits:
    """How the framework goes about a layer; DeepSeek's own is known by its products and exchanges alone."""
    workload, exchange = run.config["workload"], run.options("exchange")[0]
    outputs, latents = workload["recompute"] in OUTPUTS, workload["recompute"] in LATENTS
    again = Habits(norms_again=outputs, activations_again=outputs, latents_again=latents)
    if workload["framework"] is None:
        return again
    kernels = load_kernel("host")["router_fused" if exchange in FUSED else "router"]
    plain = exchange not in FUSED
    return replace(again, router=int(kernels), copies=plain, padded=plain and run.model.gemm != "bf16")


def _asides(
    run: Run, parallel: Parallel, batch: Batch, cluster: Cluster, wires: Wires
) -> Callable[[Beside], Sequence[Aside]] | None:
    """What is sent beside passes, as flows; None where nothing shares links with exchanges."""
    if not flag("workload.contention", run.config["workload"]["contention"]) or run.options("network")[0] != "fluid":
        return None
    if cluster.n_gpus == 1:
        return None
    raw = _cluster(run, cluster.gpus_per_node, nodes=cluster.n_nodes)
    return asides_of(
        parallel, wires, ways_of(cluster, raw), send_bytes=_sent_bytes(parallel, batch, run.model),
        gradient_bytes=positive("workload.gradient_bytes", run.config["workload"]["gradient_bytes"]),
    )  # fmt: skip


def _hand_over(seconds: float, n_gpus: int) -> Transfers:
    """Nothing that travels inside the group, but the stream that sends is taken for so long."""
    nobody = np.zeros(0, np.int64)
    return replace(independent(nobody, nobody, np.zeros(0)), least=np.full(n_gpus, seconds))


def _sender(parallel: Parallel, batch: Batch, model: Model, wires: Wires) -> Callable[[int, int], float]:
    """Seconds between two stages: each GPU sends its share of a micro-batch's activations to the one in its place."""
    nbytes = _sent_bytes(parallel, batch, model)

    def seconds(source: int, target: int) -> float:
        a, b = (stage % parallel.pipeline for stage in (source, target))
        return send_s(nbytes, a * parallel.stage_gpus, b * parallel.stage_gpus, wires)

    return seconds


def _sent_bytes(parallel: Parallel, batch: Batch, model: Model) -> float:
    """That a GPU leaves to the one of its place in another stage."""
    return batch.tokens * model.hidden * WEIGHT / (parallel.tensor if parallel.sequence_parallel else 1)


def _passes(
    blocks: Sequence[Block], device: tuple[tuple[Task, ...], ...], which: Callable[[tuple[Task, ...]], bool]
) -> list[float]:
    """Seconds of a device's passes of a kind, in order."""
    return [block.seconds for block, tasks in zip(blocks, device, strict=True) if which(tasks)]


def _distinct(pipeline: Pipeline, stages: Stages) -> int:
    """Kinds of tasks there are, for the progress bar."""
    alike = [tuple(stages.alike(layer) for layer in mine) + ((-1,) if i == len(stages.layers) - 1 else ())
             for i, mine in enumerate(stages.layers)]  # fmt: skip
    return len({
        tuple((task.kind, alike[task.stage], task.batch % stages.routings) for task in tasks)
        for device in pipeline.tasks for tasks in device
    })  # fmt: skip


def _notes(run: Run, stages: Stages, parallel: Parallel, blocks: Blocks, micro_batches: int) -> tuple[str, ...]:
    """What was played, what was inferred, and what contends."""
    groups = parallel.stage_gpus // stages.cluster.n_gpus
    kinds = f"{blocks.played} kinds of passes" if blocks.played > 1 else "one kind of pass"
    on = "one GPU" if stages.cluster.n_gpus == 1 else f"one group of {stages.cluster.n_gpus} GPUs"
    inferred = [_many(micro_batches, "micro-batch", "es")] + ([_many(groups, "group") + " per stage"] if groups > 1 else [])
    inferred += [_many(stages.routings, "routing") + " in turn"] if stages.routings > 1 else []
    said = [f"played: {kinds} on {on}; inferred: that all of their kind take as long ({', '.join(inferred)})"]
    if stages.model.n_moe_layers and groups * parallel.pipeline > 1:
        said.append("every expert group is given the same routing, and has its share of uplinks, as if all sent at the same time")
        fabric = run.config["topology"].get("fabric") or {}
        if fabric.get("name") in BY_COUNT:
            said.append(f"topology.fabric.name={fabric['name']}: an expert group is dealt over all of its switches")
    if stages.cluster.n_gpus > 1:
        network = run.options("network")[0]
        why = "workload.contention=false" if network == "fluid" else f"network={network}"
        with_them = "gradients, weights and what stages send"
        said.append(
            f"{with_them} share links with exchanges; what tensor and context groups send does not" if stages.aside is not None
            else f"{why}: {with_them} do not contend with exchanges"
        )  # fmt: skip
    return tuple(said)


def _many(n: int, what: str, plural: str = "s") -> str:
    return f"{n:,} {what}{plural if n != 1 else ''}"
