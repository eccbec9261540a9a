"""What a training step says, in sentences. Every sentence is computed from its tables."""

from __future__ import annotations

from clustersim.report.findings import Findings
from clustersim.report.reading import RunData
from clustersim.report.wording import NONE, known, nbytes, number, percent, seconds, times

FEW = 0.02              # of a step: less is not worth a sentence
EVEN = 1.02             # busiest device over the mean


def findings_of_training(run: RunData) -> Findings:
    """What limits a training step, and its main numbers."""
    row, step = run.summary, run.summary["step_s"]
    if not step:
        return Findings(headline="This step took no time", sentences=("Nothing in it takes any.",), tiles=_tiles(run))
    compute, bubble, sent = (float(row[key] or 0.0) / step for key in ("compute_s", "bubble_s", "exposed_comm_s"))
    if compute >= 0.5:
        headline = f"Computing limits this training step: {percent(compute, 0)} of {seconds(step)}"
    elif bubble >= max(compute, sent, float(row["launch_s"] or 0.0) / step):
        headline = f"The pipeline's bubble limits this training step: {percent(bubble, 0)} of {seconds(step)}"
    elif sent >= max(compute, float(row["launch_s"] or 0.0) / step):
        headline = f"Communication limits this training step: {percent(sent, 0)} of {seconds(step)}"
    elif float(row["launch_s"] or 0.0) / step >= max(compute, bubble, sent):
        headline = f"The host that launches kernels limits this training step: {seconds(row['launch_s'])} of {seconds(step)}"
    else:
        headline = f"Computing is only {percent(compute, 0)} of this training step of {seconds(step)}"
    return Findings(headline=headline, sentences=tuple(_sentences(run, step)), tiles=_tiles(run))


def _sentences(run: RunData, step: float) -> list[str]:
    row = run.summary
    told = [
        f"Of a step of {seconds(step)} a GPU computes for {seconds(row['compute_s'])}, waits for communication for "
        f"{seconds(row['exposed_comm_s'])}, and has nothing to do for {seconds(row['bubble_s'])}, the pipeline's bubble."
    ]
    told += [f"{what} {seconds(row[key])}." for key, what in _SENT.items() if (row[key] or 0.0) > FEW * step]
    if (row["wait_s"] or 0.0) > FEW * step:
        told.append(f"{seconds(row['wait_s'])} of it GPUs wait because others of their group are later.")
    told += _uneven(run)
    if known(row["imbalance"]) and row["imbalance"] > 1.1:
        told.append(f"The busiest GPU computes {times(row['imbalance'])} the mean tokens of routed experts.")
    if row["drop_rate"]:
        told.append(f"The capacity drops {percent(row['drop_rate'], 2)} of the choices.")
    return told


_SENT = {
    "tensor_comm_s": "Tensor and context groups send for", "exchange_comm_s": "Exchanges for experts that nothing hides take",
    "gradient_comm_s": "Gradients and weights of data parallel groups take",
    "launch_s": "For the host to launch kernels GPUs wait",
}  # fmt: skip


def _uneven(run: RunData) -> list[str]:
    """Which device all others wait for."""
    stages = run.tables["stages"].sort("device")
    if stages.height < 2:
        return []
    step = float(run.summary["step_s"])
    busy = (step - stages["bubble_s"]).to_list()
    mean, most = sum(busy) / len(busy), max(range(len(busy)), key=busy.__getitem__)
    alike = sum(value > busy[most] * (1 - 1e-3) for value in busy)
    if not mean or busy[most] / mean < EVEN:
        return ["The devices have about as much to do as each other: the bubble is from filling and emptying the pipeline."]
    which = f"Device {most}" if alike == 1 else f"{alike} devices"
    verb = "is" if alike == 1 else "are"
    return [
        f"{which} with {stages['layers'][most]} layers {verb} the busiest, {times(busy[most] / mean)} the mean: moving layers "
        f"away (parallel.stage_layers) could save up to {percent((busy[most] - mean) / step, 0)} of the step."
    ]


def _tiles(run: RunData) -> tuple[tuple[str, str, str], ...]:
    row, step = run.summary, run.summary["step_s"]

    def share(key: str) -> str:
        return percent((row[key] or 0.0) / step) if step else NONE

    flops, hours = row["model_flops_per_s_per_gpu"], row["gpu_hours_per_trillion_tokens"]
    tiles = [
        ("step", seconds(step), f"{number(row['tokens'])} tokens"),
        ("tokens/s per GPU", number(row["tokens_per_s_per_gpu"]), f"{number(row['tokens_per_s'])} in all"),
        ("model TFLOP/s", number(flops / 1e12, 1) if known(flops) else NONE, "of a GPU"),
        ("a trillion tokens", number(hours) if known(hours) and step else NONE, "GPU-hours"),
        ("computing", share("compute_s"), f"{seconds(row['compute_s'])} a GPU"),
        ("exposed", share("exposed_comm_s"), f"waits {seconds(row['exposed_comm_s'])}"),
        ("bubble", share("bubble_s"), f"{number(row['micro_batches'])} micro-batches"),
    ]
    if known(row["memory_bytes"]):
        tiles.append(("memory", nbytes(row["memory_bytes"]), f"of {nbytes(row['gpu_memory_bytes'])}"))
    elif known(row["imbalance"]):
        tiles.append(("expert load", times(row["imbalance"]), "busiest GPU / mean"))
    else:
        tiles.append(("in groups", share("tensor_comm_s"), "sent, tensor and context"))
    return tuple(tiles)
