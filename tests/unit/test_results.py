"""The tables and their identities, recomputed from the router's choices; the files; what a person reads."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from clustersim import InputError, load_cluster, read_trace, scan, simulate
from clustersim.engine.gpu import PARTS
from clustersim.model import model_from
from clustersim.places import PACKAGE
from clustersim.results import terminal
from clustersim.results.store import SCHEMA_VERSION, TABLES, is_done, write_failure, write_run
from clustersim.workload.source import from_trace
from clustersim.writing import replacing, sweep_up

SMALL = ["topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=3"]
SHAPES = {
    "default": [],
    "direct": ["exchange=direct", "topology=ideal_rail"],
    "dropping": ["capacity.factor=0.75", "placement.slots=64", "placement.replica=nearest"],
    "dense": ["model=deepseek_v2_lite", "model.n_layers=3", "model.n_dense_layers=2", "trace=sampled", "placement=round_robin"],
    "bound": ["network=bound", "trace=sampled", "trace.alpha=0.3"],
    "blocking": ["topology.nic.oversubscription=4", "exchange=direct"],
    "relayed": ["topology=rail_only", "exchange=direct"],
    "sprayed": ["topology=multi_plane", "exchange=direct", "topology.fabric.split=true", "topology.routing.name=spray",
        "topology.routing.then=null", "topology.routing.seed=null", "topology.fabric.nodes_per_leaf=1"],
    "shared_nic": ["topology=a100_p4d", "network=bound"],
    "one_node": ["topology.nodes=1"],
    "one_gpu": ["topology.nodes=1", "topology.gpus_per_node=1"],
    "no_compute": ["compute=none", "capacity.factor=1.0", "capacity.drop=position"],
}
CONTRACT = {
    "summary": """step_s exposed_comm_s wait_s tokens_per_s tokens_per_s_per_gpu drop_rate fully_dropped imbalance over_bound
        bottleneck nvlink_bytes nic_bytes seconds_saved_by_dropping""",
    "layers": """step layer dispatch_s compute_s combine_s wait_s exposed_comm_s dispatch_max_s compute_max_s combine_max_s
        wait_max_s exposed_comm_max_s imbalance dropped capacity_used nvlink_bytes nic_bytes over_bound bottleneck""",
    "gpus": "step layer gpu attention_s dispatch_s expert_s combine_s other_s idle_s wait_s comm_busy_s",
    "links": "step layer link",
    "experts": "step layer expert",
}
_done = {}


def made(shape):
    """The result of one of the shapes, simulated once."""
    if shape not in _done:
        own = {text.partition("=")[0] for text in SHAPES[shape]}
        _done[shape] = simulate([*(text for text in SMALL if text.partition("=")[0] not in own), *SHAPES[shape]])
    return _done[shape]


@pytest.fixture(params=SHAPES)
def result(request):
    return made(request.param)


# ---- identities


def test_the_columns_of_the_contract_are_there(result):
    assert result.tables.keys() == set(TABLES)
    for name, columns in CONTRACT.items():
        assert set(columns.split()) <= set(result.tables[name].columns), name


def test_a_gpus_parts_sum_to_the_step(result):
    step = result.summary["step_s"]
    total = result.tables["gpus"].group_by("gpu").agg(pl.sum_horizontal(pl.sum(part) for part in PARTS).alias("total"))
    assert total.height == result.summary["gpus"]
    np.testing.assert_allclose(total["total"], step, rtol=1e-9)
    for part in (*PARTS, "wait_s", "comm_busy_s"):
        assert (result.tables["gpus"][part] >= 0).all()


def test_a_gpu_idles_only_at_the_end_and_one_never_does(result):
    gpus = result.tables["gpus"]
    last = gpus["layer"] == gpus["layer"].max()
    assert not gpus.filter(~last)["idle_s"].sum()
    assert gpus.filter(last)["idle_s"].min() == 0


def test_a_gpu_waits_only_while_it_is_in_an_exchange(result):
    gpus = result.tables["gpus"]
    assert (gpus["wait_s"] <= gpus["dispatch_s"] + gpus["combine_s"] + 1e-12).all()


def test_what_is_asked_is_kept_or_dropped(result):
    experts, layers, gpus = (result.tables[name] for name in ("experts", "layers", "gpus"))
    assert (experts["asked"] == experts["kept"] + experts["dropped"]).all()
    assert (experts["dropped"] >= 0).all()
    per_layer = experts.group_by("layer", maintain_order=True).agg(pl.sum("asked", "kept", "dropped"))
    model = model_from(result.run.config["model"])
    assert (per_layer["asked"] == result.summary["tokens"] * model.top_k).all()
    moe = layers.filter(pl.col("dropped").is_not_null())
    assert moe.height == model.n_moe_layers
    assert moe["dropped"].to_list() == per_layer["dropped"].to_list()
    computed = gpus.group_by("layer", maintain_order=True).agg(pl.sum("expert_tokens"))["expert_tokens"]
    assert computed[model.n_dense_layers :].to_list() == per_layer["kept"].to_list()
    assert not computed[: model.n_dense_layers].sum()
    dropped = per_layer["dropped"].sum() / per_layer["asked"].sum()
    assert result.summary["drop_rate"] == pytest.approx(dropped, rel=1e-12)
    assert experts["replicas"].sum() == result.summary["slots"] * model.n_moe_layers


def test_nothing_is_faster_than_the_busiest_link(result):
    ratios = result.tables["layers"]["over_bound"].drop_nulls().to_list()
    if result.summary["gpus"] == 1:
        assert ratios == []
        assert result.summary["over_bound"] is None
        return
    assert min(ratios) >= 1 - 1e-9
    assert result.summary["over_bound"] >= 1 - 1e-9


def test_every_byte_goes_up_one_port_and_down_one(result):
    links, gpus, layers = (result.tables[name] for name in ("links", "gpus", "layers"))
    by_kind = {kind: links.filter(pl.col("kind") == kind) for kind in ("nvlink_up", "nvlink_down", "nic_up", "nic_down")}
    carried = {kind: float((rows["dispatch_bytes"] + rows["combine_bytes"]).sum()) for kind, rows in by_kind.items()}
    sent, received = gpus["sent_bytes"].sum(), gpus["received_bytes"].sum()
    assert sent == pytest.approx(received, rel=1e-12)
    relayed = carried["nvlink_up"] + carried["nic_up"] - sent          # crosses NVLink on its way to a NIC
    assert (relayed > 1e-9 * sent) == (result.run.topology == "rail_only")
    assert carried["nvlink_up"] + carried["nic_up"] == pytest.approx(sent + relayed, rel=1e-9)
    assert carried["nvlink_down"] + carried["nic_down"] == pytest.approx(received + relayed, rel=1e-9)
    for kind in ("nvlink", "nic"):
        assert layers[f"{kind}_bytes"].sum() == pytest.approx(carried[f"{kind}_up"], rel=1e-9)
        assert result.summary[f"{kind}_bytes"] == pytest.approx(carried[f"{kind}_up"], rel=1e-9)


def test_what_is_relayed_is_what_goes_to_other_rails():
    """The same bytes on a crossbar: PXN adds, on NVLink, those for another node whose GPU is on another rail."""
    rails = made("relayed")
    plain = simulate(["topology=h100_sxm", "exchange=direct", *SMALL])
    assert rails.summary["nic_bytes"] == pytest.approx(plain.summary["nic_bytes"], rel=1e-12)
    links = rails.tables["links"].group_by("kind").agg(pl.sum("dispatch_bytes", "combine_bytes"))
    up = dict(zip(links["kind"], links["dispatch_bytes"] + links["combine_bytes"], strict=True))
    assert up["nvlink_up"] == up["nvlink_down"]
    extra = rails.summary["nvlink_bytes"] - plain.summary["nvlink_bytes"]
    assert 0.6 * plain.summary["nic_bytes"] < extra < 0.9 * plain.summary["nic_bytes"], "3 of the 4 GPUs of the other node"


def test_collisions_are_in_the_summary_and_told_where_they_matter():
    assert made("default").summary["ecmp_collision"] is None
    assert made("blocking").summary["ecmp_collision"] is None           # one spine
    assert made("sprayed").summary["ecmp_collision"] == pytest.approx(1)
    assert not any("pile up" in note for note in made("sprayed").notes)
    fabric = ["+topology.fabric.name=leaf_spine", "+topology.fabric.spines=4"]
    piled = simulate(["exchange=direct", *SMALL, *fabric])
    assert piled.summary["ecmp_collision"] == pytest.approx(4)
    assert any("pile up: the busiest leaf_" in note and "4.00 times" in note for note in piled.notes)
    links = piled.tables["links"].filter(pl.col("kind") == "leaf_up")
    used = links.group_by("name").agg(pl.sum("dispatch_bytes"))
    assert used.filter(pl.col("dispatch_bytes") > 0)["name"].str.ends_with(".0").all(), "shortest takes the first spine"


def test_layers_are_means_and_maxima_of_the_gpus(result):
    layers, gpus = result.tables["layers"], result.tables["gpus"]
    gpus = gpus.with_columns(
        compute_s=pl.col("attention_s") + pl.col("expert_s") + pl.col("other_s"),
        exposed_comm_s=pl.col("dispatch_s") + pl.col("combine_s") + pl.col("idle_s"),
    )
    for name in ("dispatch", "compute", "combine", "wait", "exposed_comm"):
        values = gpus[f"{name}_s"].to_numpy().reshape(layers.height, -1)
        np.testing.assert_allclose(layers[f"{name}_s"], values.mean(axis=1), rtol=1e-12, atol=1e-18)
        np.testing.assert_array_equal(layers[f"{name}_max_s"], values.max(axis=1))


def test_the_summary_sums_up(result):
    s, layers, gpus = result.summary, result.tables["layers"], result.tables["gpus"]
    assert s["exposed_comm_s"] == pytest.approx(s["step_s"] - s["compute_s"], rel=1e-12)
    assert layers["exposed_comm_s"].sum() == pytest.approx(s["exposed_comm_s"], rel=1e-9, abs=1e-18)
    assert s["wait_s"] == pytest.approx(gpus["wait_s"].sum() / s["gpus"], rel=1e-12)
    if s["step_s"]:
        assert s["tokens_per_s"] * s["step_s"] == pytest.approx(s["tokens"])
        assert s["tokens_per_s_per_gpu"] * s["gpus"] == pytest.approx(s["tokens_per_s"])
    assert result.tables["summary"].row(0, named=True) == {"run_id": result.run_id, **s}


def test_the_bottleneck_is_the_link_that_takes_longest_by_itself(result):
    busy = result.tables["links"].group_by("name").agg(pl.sum("busy_s"))
    if result.summary["bottleneck"] is None:
        assert not busy["busy_s"].sum()
        return
    most = busy["busy_s"].max()
    assert result.summary["bottleneck"] in busy.filter(pl.col("busy_s") >= most * (1 - 1e-12))["name"].to_list()
    assert result.summary["bottleneck_busy_s"] == pytest.approx(most)
    assert most <= result.summary["step_s"] * (1 + 1e-9)


def test_the_class_that_limits_is_of_the_busiest_link_of_every_exchange(result):
    """From the links one by one: of every exchange the link that its bytes take longest, their seconds by class."""
    links, seconds = result.tables["links"], {}
    for phase in ("dispatch_bytes", "combine_bytes"):
        for layer in links["layer"].unique():
            rows = links.filter(pl.col("layer") == layer).to_dicts()
            alone = [row[phase] / row["capacity_bytes_per_s"] for row in rows]
            if max(alone):
                kind = rows[alone.index(max(alone))]["kind"].removesuffix("_up").removesuffix("_down")
                seconds[kind] = seconds.get(kind, 0.0) + max(alone)
    if not seconds:
        assert result.summary["bottleneck_class"] is result.summary["bottleneck_class_share"] is None
        return
    assert seconds[result.summary["bottleneck_class"]] == pytest.approx(max(seconds.values()))
    assert result.summary["bottleneck_class_share"] == pytest.approx(max(seconds.values()) / sum(seconds.values()))


def test_what_computing_consists_of_sums_to_it(result):
    s, gpus = result.summary, result.tables["gpus"]
    assert s["attention_s"] + s["expert_s"] + s["other_s"] == pytest.approx(s["compute_s"], rel=1e-9, abs=1e-18)
    assert s["dispatch_s"] + s["combine_s"] == pytest.approx(
        gpus.select(pl.sum("dispatch_s") + pl.sum("combine_s")).item() / s["gpus"], rel=1e-9, abs=1e-18
    )


def test_twice_the_nics_make_nvlink_the_limit():
    """On nodes whose NVLink is as slow as a NIC, what crosses the node weighs on NVLink too as soon as the NIC is faster."""
    own = [*SMALL, "topology.nvlink.bandwidth=50 GB/s", "topology.nvlink.achievable=null", "network=bound"]
    slow, fast = (simulate([*own, f"topology.nic.bandwidth={nic}Gb/s"]) for nic in (100, 3200))
    assert (slow.summary["bottleneck_class"], fast.summary["bottleneck_class"]) == ("nic", "nvlink")


def test_dense_layers_have_no_exchange():
    result = made("dense")
    layers = result.tables["layers"]
    dense = layers.head(2)
    assert dense.select("dispatch_s", "combine_s", "wait_s").sum_horizontal().to_list() == [0, 0]
    for column in ("imbalance", "dropped", "over_bound", "bottleneck", "nic_bytes"):
        assert dense[column].to_list() == [None, None]
    assert (dense["compute_s"] > 0).all()
    assert set(result.tables["links"]["layer"]) == set(result.tables["experts"]["layer"]) == {2}


def test_the_capacity_used_is_kept_choices_over_room():
    """Capacity per source GPU and expert: ceil(32 tokens x 4 / 32 experts x 0.75) = 3; 8 GPUs x 32 experts of it."""
    result = made("dropping")
    kept = result.tables["experts"].group_by("layer", maintain_order=True).agg(pl.sum("kept"))["kept"]
    np.testing.assert_allclose(result.tables["layers"]["capacity_used"], kept / (3 * 8 * 32))
    assert result.summary["drop_rate"] > 0
    assert made("default").tables["layers"]["capacity_used"].to_list() == [None] * 3


# ---- law 34: bytes on every link, followed token by token


def the_other_way(name):
    """What went up a GPU's port on its way out comes down it on its way home."""
    return re.sub("up|down", lambda way: {"up": "down", "down": "up"}[way[0]], name)


def test_law_34_the_bytes_of_every_link_are_those_of_the_tokens_that_cross_it():
    result = made("direct")
    model, cluster = result.run.model, load_cluster("ideal_rail", nodes=2, gpus_per_node=4)
    tokens = from_trace(read_trace(PACKAGE / "workload" / "data" / "tiny"), model, 8, 32)
    links = result.tables["links"]
    for layer in range(3):
        asked = tokens.choose(layer).ids
        crossed = defaultdict(int)
        for home, row in zip(tokens.source.tolist(), asked.tolist(), strict=True):
            for expert in row:
                gpu = expert // 4               # 32 slots on 8 GPUs
                if gpu != home:
                    wire = "nvlink" if gpu // 4 == home // 4 else "nic"
                    crossed[f"{wire}_up {home}"] += 1
                    crossed[f"{wire}_down {gpu}"] += 1
        rows = links.filter(pl.col("layer") == layer)
        expected = np.array([crossed[name] for name in rows["name"]])
        assert rows["name"].to_list() == [link.name for link in cluster.links]
        np.testing.assert_allclose(rows["dispatch_bytes"], expected * model.dispatch_token_bytes, rtol=1e-12)
        back = np.array([crossed[the_other_way(name)] for name in rows["name"]])
        np.testing.assert_allclose(rows["combine_bytes"], back * model.combine_token_bytes, rtol=1e-12)
        np.testing.assert_allclose(rows["busy_s"], (rows["dispatch_bytes"] + rows["combine_bytes"]) / cluster.capacity)


def test_the_columns_have_the_same_types_whatever_travelled():
    many, one = made("no_compute"), made("one_gpu")
    for name in ("layers", "gpus", "links", "experts"):
        assert one.tables[name].schema == many.tables[name].schema


# ---- files


def small_tables():
    return {name: pl.DataFrame({"x": [1.5, 2.5], "run_id": ["r", "r"]}) for name in TABLES}


RUN = {"config": {"a": {"b": None}}, "version": "0", "wall_s": 1.0}


def test_a_folder_holds_tables_that_describe_themselves(tmp_path):
    write_run(tmp_path / "r", small_tables(), RUN)
    assert {f.name for f in (tmp_path / "r").iterdir()} == {"run.json", "status.json", *(f"{t}.parquet" for t in TABLES)}
    assert json.loads((tmp_path / "r" / "status.json").read_text()) == {"state": "done", "schema": SCHEMA_VERSION}
    assert json.loads((tmp_path / "r" / "run.json").read_text()) == RUN
    for name in TABLES:
        footer = pl.read_parquet_metadata(tmp_path / "r" / f"{name}.parquet")
        assert footer["clustersim.schema"] == f"{name}/{SCHEMA_VERSION}"
        assert json.loads(footer["clustersim.config"]) == RUN["config"]
        assert pl.read_parquet(tmp_path / "r" / f"{name}.parquet").equals(small_tables()[name])


def test_a_failed_write_leaves_no_file_half_written_and_no_folder_that_is_done(tmp_path, monkeypatch):
    write_run(tmp_path / "r", small_tables(), RUN)
    before = (tmp_path / "r" / "gpus.parquet").read_bytes()

    def disk_full(self, data):
        with self.open("wb") as file:
            file.write(data[:13])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_run(tmp_path / "r", small_tables(), RUN)
    assert (tmp_path / "r" / "gpus.parquet").read_bytes() == before
    assert not (tmp_path / "r" / "status.json").exists()
    assert not list((tmp_path / "r").glob(".*"))


def test_scan_takes_what_is_done(tmp_path):
    write_run(tmp_path / "s" / "one", small_tables(), RUN)
    write_run(tmp_path / "s" / "two=2 [x]", small_tables() | {"summary": pl.DataFrame({"x": [3], "y": ["more"]})}, RUN)
    write_run(tmp_path / "s" / "broken", small_tables(), RUN)
    (tmp_path / "s" / "broken" / "status.json").write_text(json.dumps({"state": "failed", "reason": "it broke"}))
    for name, text in {"other": '["not ours"]', "garbage": "{", "none": "{}"}.items():
        (tmp_path / "s" / name).mkdir()
        (tmp_path / "s" / name / "status.json").write_text(text)
    frame = scan(tmp_path).collect()
    assert frame.select("x", "run_id", "y").rows() == [(1.5, "one", None), (2.5, "one", None), (3.0, "two=2 [x]", "more")]
    assert scan(tmp_path / "s", "gpus").collect().height == 4
    assert json.loads((tmp_path / "s" / "broken" / "status.json").read_text()) == {"state": "failed", "reason": "it broke"}


def test_scan_says_what_it_cannot_find(tmp_path):
    with pytest.raises(InputError, match=r"table=gpu: there is no such table; did you mean gpus\? \(known: summary, layers"):
        scan(tmp_path, "gpu")
    with pytest.raises(InputError, match="holds no finished run"):
        scan(tmp_path)
    with pytest.raises(InputError, match="holds no finished run"):
        scan(tmp_path / "nowhere")


def test_json_and_tables_go_through_a_temporary_name(tmp_path):
    def broken():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_was_writing_is_swept_up_and_what_a_living_one_writes_is_not(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from clustersim.writing import replacing\n"
        "with replacing(Path(sys.argv[1]) / 'gpus.parquet') as temporary:\n"
        "    temporary.write_bytes(b'PAR1 and then'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, cwd=PACKAGE.parent, timeout=60)
    (left,) = tmp_path.iterdir()
    strangers = [tmp_path / ".other.tmp", tmp_path / ".x.another-host.1.0.tmp", tmp_path / "gpus.parquet"]
    for path in strangers:
        path.write_text("not ours to remove")
    with replacing(tmp_path / "x") as temporary:
        temporary.write_text("being written")
        sweep_up(tmp_path)
        assert temporary.exists()
    assert not left.exists()
    assert {*tmp_path.iterdir()} == {*strangers, tmp_path / "x"}


def test_a_run_is_done_when_all_of_it_is_there_as_this_version_writes_it(tmp_path):
    folder = tmp_path / "r"
    assert not is_done(folder)
    write_run(folder, small_tables(), RUN)
    assert is_done(folder)
    (folder / "links.parquet").rename(tmp_path / "elsewhere")
    assert not is_done(folder)
    (tmp_path / "elsewhere").rename(folder / "links.parquet")
    (folder / "status.json").write_text(json.dumps({"state": "done", "schema": SCHEMA_VERSION - 1}))
    assert not is_done(folder)


def test_a_failure_is_told_in_the_folder_until_the_run_succeeds(tmp_path):
    folder = tmp_path / "r"
    write_failure(folder, "it broke", "crash", ["seed=1"], "a long story")
    told = {"state": "failed", "reason": "it broke", "fault": "crash", "overrides": ["seed=1"]}
    assert json.loads((folder / "status.json").read_text()) == told
    assert (folder / "error.txt").read_text() == "a long story"
    write_run(folder, small_tables(), RUN)
    assert is_done(folder)
    assert not (folder / "error.txt").exists()
    write_failure(folder, "too late", "crash", [])
    assert is_done(folder)
    (tmp_path / "file").write_text("")
    write_failure(tmp_path / "file" / "r", "nowhere to say it", "crash", [])


# ---- what a person reads


def printed(renderable, width=80):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_layer_table_fits_80_columns_and_marks_dense_layers():
    lines = printed(terminal.layer_table(made("dense").tables["layers"])).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[-1] for line in lines[1:3]] == ["dense", "dense"]
    assert lines[3].split()[0] == "2"


def test_the_summary_says_the_numbers_in_words():
    result = made("dropping")
    text = " ".join(printed(terminal.summary(result.summary, ("mind this",))).split())
    assert "gpt_oss_20b on 8 GPUs of h100_sxm" in text
    for words in ("64 slots, nearest", "capacity factor 0.75", "of the choices", "note: mind this"):
        assert words in text
    assert "dropped nothing" in " ".join(printed(terminal.summary(made("default").summary, ())).split())
    assert "no time passed" in printed(terminal.summary({**made("one_gpu").summary, "step_s": 0.0}, ()), width=200)


def test_the_comparison_shows_what_varies_and_the_fastest_as_one():
    row = made("default").summary
    times = (("1.0", 2e-3), ("null", 1e-3), ("2.0", 4e-3))
    jobs = [(["seed=1", f"capacity.factor={f}"], {**row, "step_s": s, "tokens_per_s": 1 / s}) for f, s in times]
    lines = printed(terminal.comparison(jobs), width=120).splitlines()
    assert lines[0].split()[0] == "capacity.factor"
    assert "seed" not in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["1.0", "null", "2.0"]
    assert [line.split()[-1] for line in lines[1:4]] == ["2.00", "1.00", "4.00"]
    assert len(printed(terminal.comparison(jobs[:1]), width=120).splitlines()) == 3
    assert printed(terminal.comparison([(["seed=1"], {**row, "step_s": 0.0, "tokens_per_s": None, "bottleneck": None})]))


def test_the_summary_shows_padding_and_rerouting_only_where_there_is_any():
    row = made("dropping").summary
    plain, more = (
        " ".join(printed(terminal.summary({**row, **extra}, ())).split())
        for extra in ({}, {"rerouted_rate": 0.123, "padding_share": 0.25, "padding_sent_bytes": 3e6})
    )
    assert "of the gate weights; saves" in plain
    assert "capacity factor 0.75 (megatron, prob)" in plain
    assert "rerouted" not in plain
    assert "padding" not in plain
    assert "rerouted 12.30 % of the choices" in more
    assert "padding 25.00 % of the rows that experts compute; 3.00 MB sent" in more
    assert "- of the gate weights" in " ".join(printed(terminal.summary({**row, "gate_mass_lost": None}, ())).split())


def test_the_trade_shows_both_sides_of_dropping_in_80_columns_and_nothing_where_nothing_is_dropped():
    row = made("dropping").summary
    jobs = [([f"capacity.factor={f}"], {**row, "seconds_saved_by_dropping": s}) for f, s in (("0.75", 2e-3), ("null", -1e-3))]
    lines = printed(terminal.trade(jobs)).splitlines()
    assert " ".join(lines[0].split()) == "capacity.factor step saved dropped wholly gate lost used"
    assert [line.split()[3:5] for line in lines[1:3]] == [["2.00", "ms"], ["-1.00", "ms"]]
    assert f"{100 * row['gate_mass_lost']:.2f} %" in lines[1]
    assert all(len(line) <= 80 for line in lines)
    padded = terminal.trade([(overrides, {**numbers, "padding_share": 0.5}) for overrides, numbers in jobs])
    assert printed(padded).splitlines()[0].split()[-1] == "padding"
    assert terminal.trade([(["seed=1"], made("default").summary)]) is None


def test_pairs_add_up_to_what_gpus_sent_and_received(result):
    """Two ways of counting the same transfers: per pair over all layers, and per GPU and layer."""
    pairs, gpus = result.tables["pairs"], result.tables["gpus"]
    n = gpus["gpu"].max() + 1
    for own, column in (("src", "sent_bytes"), ("dst", "received_bytes")):
        total = np.bincount(pairs[own], (pairs["dispatch_bytes"] + pairs["combine_bytes"]).to_numpy(), n)
        told = gpus.group_by("gpu").agg(pl.sum(column)).sort("gpu")[column].to_numpy()
        np.testing.assert_allclose(total, told, rtol=1e-9)
    assert not pairs.filter(pl.col("src") == pl.col("dst")).height
    assert not pairs.select("src", "dst").is_duplicated().any()


def test_payload_is_counted_apart_from_what_is_on_the_wires():
    """Direct copies of one node: payload is what travels and what stays at home, an eighth of it or so; headers come on top."""
    plain = simulate([*SMALL, "exchange=direct", "topology.nodes=1"])
    joined = simulate([*SMALL, "exchange=rank_dedup", "topology.nodes=1"])
    assert plain.summary["logical_bytes"] > plain.summary["nvlink_bytes"] > 0
    assert joined.summary["logical_bytes"] < plain.summary["logical_bytes"]
    layers = plain.tables["layers"]
    assert layers["logical_bytes"].drop_nulls().sum() == pytest.approx(plain.summary["logical_bytes"])
    assert simulate([*SMALL, "exchange=allgather", "topology.nodes=1"]).summary["logical_bytes"] is None
