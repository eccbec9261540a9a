"""results/README.md says what every column is, of no other, and its queries run."""

import re
from pathlib import Path

import polars as pl
import pytest

import clustersim as cs
from clustersim.places import PACKAGE
from clustersim.results.store import MORE, TABLES

PAGE = (PACKAGE.parent / "results" / "README.md").read_text(encoding="utf-8")
SMALL = ["topology.nodes=1", "model.n_layers=2", "network=bound"]
FEW = "workload.tokens_per_gpu=16"
UNITS = {"s": r"_s$", "bytes": r"_bytes$", "bytes/s": r"_bytes_per_s$"}


def described(table):
    """Column -> unit, as the page has them."""
    section = re.search(rf"^## {table}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section[1].splitlines() if line.startswith("| `")]
    return {name: unit for names, unit, _ in rows for name in re.findall(r"`([^`]+)`", names)}


@pytest.fixture(scope="module")
def some_runs(tmp_path_factory):
    """Runs that differ in columns and types: a factor that is null, whole and broken, a trace with keys of its own, causes."""
    folder = tmp_path_factory.mktemp("here")
    more: list[list[str]] = [[], ["capacity.factor=1"], ["capacity.factor=1.5"], ["causes=true"]]
    more += [["trace=sampled", "exchange=direct", "replicates=2"]]
    more += [["trace=sampled", "workload.steps=3", "placement=eplb", "decide=periodic", "decide.warmup=1", "decide.period=1"]]
    training = ["workload=training", "workload.sequence=32", "workload.global_batch=8", "parallel.expert=4"]
    training += ["parallel.pipeline=2"]
    more += [training]
    for overrides in more:
        few = [] if overrides is training else [FEW]
        cs.simulate([*SMALL, *few, *overrides, f"output={folder / 'results'}"]).save()
    return folder


@pytest.mark.parametrize("table", [*TABLES, *MORE])
def test_every_column_is_described_and_nothing_else(some_runs, table):
    columns = set(cs.scan(some_runs, table).collect_schema().names())
    if table == "summary":
        columns = {"GROUP.KEY" if "." in name else name for name in columns}
    assert columns - {"run_id"} == described(table).keys() - {"run_id"}


@pytest.mark.parametrize("table", [*TABLES, *MORE])
def test_names_end_in_the_unit_that_the_page_says(table):
    for name, unit in described(table).items():
        ends = [said for said, pattern in UNITS.items() if re.search(pattern, name)]
        if ends and not name.endswith("_per_s"):
            assert ends == [unit], name


def test_every_key_of_the_config_is_a_column(some_runs):
    frame = cs.scan(some_runs).select("capacity.factor", "trace.name", "topology.nic.bandwidth", "placement.slots").collect()
    assert frame["capacity.factor"].to_list().count(None) == 5
    assert set(frame["topology.nic.bandwidth"]) == {"400Gb/s"}


def test_the_polars_queries_run(some_runs, monkeypatch):
    monkeypatch.chdir(some_runs)
    (code,) = re.findall(r"<!-- polars -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    lines = [line for line in code.splitlines() if line.startswith("cs.")]
    assert [line.split('"')[3] for line in lines] == [*TABLES, *MORE]
    for line in lines:
        assert eval(line, {"cs": cs, "pl": pl}).height > 0, line


def test_the_duckdb_queries_run_on_the_same_files(some_runs, monkeypatch):
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is not installed (pip install '.[dev]')")
    monkeypatch.chdir(some_runs)
    (code,) = re.findall(r"<!-- duckdb -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
    queries = [query for query in code.split(";") if query.strip()]
    assert len(queries) == len(TABLES) + 1
    for query in queries:
        assert duckdb.sql(query).fetchall(), query
    steps = duckdb.sql("SELECT run_id, step_s FROM read_parquet('results/*/*/summary.parquet', union_by_name = true)").fetchall()
    assert sorted(steps) == sorted(cs.scan("results").select("run_id", "step_s").collect().rows())


def test_runs_of_an_older_version_are_scanned_beside_new_ones(some_runs, tmp_path):
    """Version 1 had no causes and no keys of the config, and its capacity_factor had no type where it was null."""
    from clustersim.results.store import write_run
    from clustersim.results.tables import CAUSE_COLUMNS

    result = cs.simulate([*SMALL, FEW, f"output={tmp_path}"])
    result.save()
    old = {name: table.drop(CAUSE_COLUMNS, strict=False) for name, table in result.tables.items()}
    kept = [name for name in old["summary"].columns if "." not in name]
    narrower = {"capacity_factor": pl.lit(None), "tokens": pl.col("tokens").cast(pl.Int32)}
    old["summary"] = old["summary"].select(kept).with_columns(**narrower)
    write_run(tmp_path / "runs" / "old", old, result.provenance)
    (tmp_path / "runs" / "old" / "status.json").write_text('{"state": "done"}')
    for table in TABLES:
        frame = cs.scan(tmp_path, table).collect()
        assert set(frame["run_id"]) == {"old", result.run_id}
        new = frame.filter(pl.col("run_id") == result.run_id).select(result.tables[table].columns)
        assert new.rows() == result.tables[table].rows()
    assert cs.scan(tmp_path).collect()["capacity.factor"].null_count() == 2


def test_the_page_is_in_the_folder_that_git_keeps():
    assert (Path(PACKAGE.parent) / ".gitignore").read_text().count("!/results/README.md") == 1
