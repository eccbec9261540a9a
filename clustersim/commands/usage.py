"""The page that `clustersim --help` shows, 80 columns wide."""

from __future__ import annotations

import textwrap

from clustersim.places import GROUPS, group_folder, options

WIDTH, AT = 80, 34              # columns of the page, and where what a command does begins
USAGE = (                       # what is typed after `clustersim`, and what it does
    ("[KEY=VALUE ...]", "one run; a table per layer, a summary, and a folder of results; --json: for scripts"),
    ("-m KEY=A,B,C ...", "a sweep: one run for every combination, compared in one table; --json: for scripts"),
    ("+experiment=NAME", "a study"),
    ("--cfg [KEY=VALUE ...]", "the whole config of a run, without running it"),
    ("--config-dir DIR ...", "with options of your own: DIR/topology/mine.yaml is topology=mine, DIR/experiment/mine.yaml is "
     "+experiment=mine"),
    ("list [GROUP]", "all options, one line each; GROUP=OPTION: its keys and what they mean; --json"),
    ("inspect PATH", "what a topology, a model, a trace or the folder of a run is (--plot draws a topology or a trace, "
     "-o FILE.png says where; --check: is the trace sound?)"),
    ("convert SRC -o DIR", "a trace from what another system recorded; --from FORMAT, else it is recognised (clustersim convert "
     "alone lists the formats; KEY=VALUE: what the file does not say)"),
    ("convert CONFIG.json --from hf-config [-o MODEL.yaml]", "a model from a Hugging Face configuration, for model=MODEL.yaml"),
    ("compare A B", "two runs (their folders or run_ids) side by side: how they differ, and what came of it; A B C ...: one "
     "table; DIR, or nothing: the last sweep; --json"),
    ("disaggregate prompt=N output=N ...", "prefill and decoding on nodes of their own: what either side and the caches between "
     "them can serve (KEY=VALUE of both, prefill.KEY=VALUE and decode.KEY=VALUE of one; KEY=A,B,C: all combinations; --json)"),
    ("fit TRACE [-o FILE]", "what the sampler has to be told to look like a trace; for trace.parameters=FILE"),
    ("fit PATH --score", "how well that works, on sequences held out; PATH a trace, or a folder of them"),
    ("report [DIR]", "one page with pictures of a run, or of the last sweep of a study (the newest without DIR); --all: of all "
     "runs in DIR; --svg, --pdf: every figure too; -o FILE"),
    ("capture tiny", "train a small model in PyTorch and record its router (KEY=VALUE: out, device, seed, steps, scores)"),
    ("capture hf MODEL --text FILE ...", "record the routers of a Hugging Face model (KEY=VALUE: out, batch, length, sequences, "
     "generate, scores, device, dtype, tokenizer)"),
    ("validate [FILE]", "simulated against published measurements, or against those of FILE (--rows each row, --json for "
     "scripts, --plot [-o FILE.png] a picture, --leave-out each group without the constants that its own rows set, "
     "--refit the fitted constants once more)"),
    ("calibrate LOGS... -o FILE.yaml", "constants of a kernel from your nccl-tests, DeepEP or nvbandwidth logs; for "
     "exchange.kernel=FILE.yaml (KEY=VALUE where a log does not say it: gpu, gpus, gpus_per_node, nic, experts)"),
    ("completion SHELL", "what bash, zsh or fish needs to complete commands, options and keys"),
)  # fmt: skip
EXAMPLES = """\
examples
  clustersim capacity.factor=1.25 placement.replica=nearest
  clustersim -m capacity.factor=1.0,1.25,1.5,2.0
  clustersim model=deepseek_v3 topology=h800_sxm trace=sampled network=bound
  clustersim workload=training parallel.pipeline=4 parallel.order=zero_bubble
"""


def page() -> str:
    """The whole page."""
    return "\n".join([
        "clustersim: a cluster that runs a mixture-of-experts model, simulated from",
        "router decisions to seconds",
        "",
        *(line for typed, does in USAGE for line in _entry(typed, does)),
        "",
        EXAMPLES,
        "groups and their options (the defaults: clustersim --cfg)",
        *map(_group, GROUPS),
        "",
        *textwrap.wrap("any key of the config can be set: workload.tokens_per_gpu=1024 topology.nodes=16 seed=1 "
                       "(clustersim --cfg lists them)", WIDTH),
    ])  # fmt: skip


def page_of(command: str) -> str:
    """What the page says of one command."""
    lines = [line for typed, does in USAGE if typed.split()[0] == command for line in _entry(typed, does)]
    return "\n".join([*lines, "", "clustersim --help shows all commands, groups and options"])


def _entry(typed: str, does: str) -> list[str]:
    """What is typed, and beside it, or below where that is too long, what it does."""
    start = f"  clustersim {typed}"
    lines = textwrap.wrap(does, WIDTH - AT, break_on_hyphens=False)
    if len(start) >= AT:
        return [start, *(" " * AT + line for line in lines)]
    return [f"{start:<{AT}}{lines[0]}", *(" " * AT + line for line in lines[1:])]


def _group(group: str) -> str:
    wide = max(len(group) for group in GROUPS)
    return textwrap.fill(
        f"  {group:<{wide}}  {', '.join(options(group_folder(group)))}", WIDTH, subsequent_indent=" " * (wide + 4)
    )
