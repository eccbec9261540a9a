"""`--config-dir`: a folder of one's own with further options, studies and groups."""

import json
import shutil

import pytest

from clustersim import InputError, simulate
from clustersim.cli import main
from clustersim.config import compose
from clustersim.identity import identify
from clustersim.places import PACKAGE, data_folder, options_of

SMALL = ["workload.tokens_per_gpu=32", "model.n_layers=2", "network=bound"]
STUDY = """\
# what two seeds do
defaults:
  - override /topology: lab
hydra:
  sweeper:
    params:
      seed: 1,2
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A folder `my` beside the results: a machine, a router, a study, and a group `preset`."""
    monkeypatch.chdir(tmp_path)
    for group in ("topology", "router", "experiment", "preset"):
        (tmp_path / "my" / group).mkdir(parents=True)
    machine = (data_folder("topologies") / "ideal_rail.yaml").read_text()
    (tmp_path / "my/topology/lab.yaml").write_text(machine.replace("\nnodes: 8", "\nnodes: 1", 1))
    shutil.copy(PACKAGE / "conf/router/top_k.yaml", tmp_path / "my/router/four.yaml")
    (tmp_path / "my/experiment/two_seeds.yaml").write_text(STUDY)
    (tmp_path / "my/preset/small.yaml").write_text(
        "# little\ndefaults: [override /network: bound]\nworkload: {tokens_per_gpu: 32}\nmodel: {n_layers: 2}\n"
    )
    return tmp_path / "my"


def run_id(*overrides):
    return identify(compose([*overrides])).run_id


@pytest.mark.parametrize("workers", [0, 1])
def test_a_study_of_ones_own_on_a_machine_of_ones_own(own, workers, capsys):
    """`workers=1`: in a process of its own, which has to find them too."""
    assert main(["--config-dir", "my", "+experiment=two_seeds", "+preset=small", f"workers={workers}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["folder"] == "results/two_seeds"
    assert [(job["summary"]["topology"], job["summary"]["nodes"], job["summary"]["seed"]) for job in document["jobs"]] == [
        ("lab", 1, 1), ("lab", 1, 2),
    ]  # fmt: skip
    assert all("config_dir" not in (own.parent / job["folder"] / "run.json").read_text() for job in document["jobs"])


def test_a_run_is_what_its_values_are_not_where_they_are_from(own):
    asked = ["config_dir=my", "topology=lab", *SMALL]
    first = run_id(*asked)
    assert run_id(*asked, "+preset=small") == first, "it says what was said already"
    own.rename(own.with_name("moved"))
    assert run_id("config_dir=moved", *asked[1:]) == first
    lab = own.with_name("moved") / "topology/lab.yaml"
    assert run_id(f"topology={lab}", *SMALL) == first, "the same file, given as a file"
    lab.write_text(lab.read_text().replace("450 GB/s", "449 GB/s"))
    assert run_id("config_dir=moved", *asked[1:]) != first


def test_options_of_ones_own_are_listed_and_suggested(own, capsys):
    assert main(["list", "--config-dir", "my", "topology", "preset"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["topology:", *options_of("topology", own), "preset:", "small"]
    assert "lab" in options_of("topology", own)
    assert main(["--config-dir=my", "list", "preset"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"  {'small':<18} little"
    for wrong, said in (
        ("topology=lub", "topology=lub: there is no such topology; did you mean lab?"),
        ("+experiment=two_seed", "experiment=two_seed: there is no such experiment; did you mean two_seeds?"),
        ("+preset=smal", "preset=smal: there is no such preset; did you mean small? (known: small)"),
        ("preset=small", "preset=small: write +preset=small"),
        ("router=four_", "router=four_: there is no such router; did you mean four?"),
        ("router.kk=1", "router.kk: there is no such key"),
    ):
        assert main(["--config-dir", "my", wrong]) == 2
        assert capsys.readouterr().err.startswith(f"clustersim: {said}")


def test_a_key_of_an_option_of_ones_own_is_told_to_belong_to_it(own, capsys):
    (own / "exchange").mkdir()
    (own / "exchange/mine.yaml").write_text("name: direct\nspecial: 1\n")
    assert main(["--config-dir", "my", "exchange.special=2"]) == 2
    assert "exchange.special: belongs to exchange=mine, and another exchange is chosen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda own: shutil.rmtree(own), "config_dir=my: there is no such folder"),
        (lambda own: (shutil.rmtree(own), own.mkdir()), "config_dir=my: holds no folder of options, such as my/topology"),
        (lambda own: (own / "topology/h100_sxm.yaml").touch(), "my/topology/h100_sxm.yaml: clustersim has a topology of"),
        (lambda own: (own / "preset/x.yaml").write_text("a: [1"), "my/preset/x.yaml: not a YAML file: "),
        (lambda own: (own / "preset/x.yaml").write_text("- 1"), "my/preset/x.yaml: sets no keys"),
        (lambda own: (own / "preset/small.yaml").write_text("wrokload: {steps: 1}"), "wrokload"),
    ],
)
def test_a_folder_that_will_not_do_is_one_line(own, spoil, said, capsys):
    spoil(own)
    assert main(["--config-dir", "my", "topology=h100_sxm", *SMALL, *["+preset=small"] * ("wrokload" in said)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"clustersim: {said}")


def test_one_folder_at_a_time_and_from_python_too(capsys):
    assert main(["--config-dir"]) == 2
    assert "--config-dir: needs a value" in capsys.readouterr().err
    assert main(["-m", "config_dir=my,other", *SMALL]) == 2
    assert "config_dir" in capsys.readouterr().err
    assert simulate(["config_dir=my", "topology=lab", *SMALL]).summary["topology"] == "lab"
    with pytest.raises(InputError, match="there is no such topology"):
        simulate(["topology=lab", *SMALL])


def test_the_report_of_a_study_of_ones_own_begins_with_its_question(own, capsys):
    assert main(["--config-dir", "my", "+experiment=two_seeds", "+preset=small", "workers=0"]) == 0
    assert main(["report", "results/two_seeds"]) == 0
    assert "what two seeds do" in (own.parent / "results/two_seeds/report.html").read_text(encoding="utf-8")


def test_a_machine_of_ones_own_is_inspected_by_name(own, capsys):
    assert main(["inspect", "--config-dir", "my", "lab"]) == 0
    by_name = capsys.readouterr().out
    assert main(["inspect", "my/topology/lab.yaml"]) == 0
    assert capsys.readouterr().out == by_name
    assert "8 GPUs" in by_name
    assert main(["inspect", "--config-dir", "my", "h100_sxm"]) == 0, "ours are found as before"
    assert main(["inspect", "--config-dir", "nowhere", "lab"]) == 2
    assert capsys.readouterr().err == "clustersim: --config-dir nowhere: there is no such folder\n"
