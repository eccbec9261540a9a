"""Pages of reports in a headless Chromium: at the widths of a phone, a tablet and a desktop, light and dark, and on paper."""

import json
import re
import shutil
import subprocess

import pytest

from clustersim.report.make import write_report
from tests.reports import made_sweep, real_run, trained_run

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
WIDTHS = (390, 820, 1440)
LEAST = 8.5             # pixels of the smallest text of a figure, as it is shown

# Every page in a frame of every width, measured from outside; frames because a window cannot be as narrow as a phone.
HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const pages = %s, widths = %s, found = [];
function measure(frame, name, width) {
  const doc = frame.contentDocument, win = frame.contentWindow, root = doc.documentElement;
  const shown = [...doc.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width > 0);
  const outside = [], small = [], blank = [];
  for (const svg of shown) {
    const edge = svg.getBoundingClientRect();
    if (edge.height < 20 || !svg.children.length) blank.push(svg.getAttribute("aria-label"));
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect(), scale = edge.width / svg.viewBox.baseVal.width;
      if (box.left < edge.left - 2 || box.right > edge.right + 2 || box.top < edge.top - 2 || box.bottom > edge.bottom + 2)
        outside.push(text.textContent);
      small.push(scale * parseFloat(text.getAttribute("font-size")));
    }
  }
  const figures = [...doc.querySelectorAll("figure")];
  const head = doc.querySelector("h1").getBoundingClientRect(), table = doc.querySelector("table");
  let sorted = null;
  const heading = doc.querySelector("th.s");
  if (heading) {
    const first = () => [...heading.closest("table").tBodies[0].rows].map(row => row.cells[0].textContent);
    const before = first();
    heading.click(); const up = first(); heading.click(); const down = first();
    sorted = {before, up, down};
  }
  found.push({
    name, width, inner: win.innerWidth, overflow: root.scrollWidth - root.clientWidth, outside, blank,
    smallest: small.length ? Math.min(...small) : null,
    ones: figures.map(f => [...f.querySelectorAll("svg")].filter(s => shown.includes(s)).length),
    head: head.bottom, sorted, fetched: win.performance.getEntriesByType("resource").length,
    ground: win.getComputedStyle(doc.body).backgroundColor, ink: win.getComputedStyle(doc.body).color,
  });
}
let left = Object.keys(pages).length * widths.length;
for (const [name, page] of Object.entries(pages)) for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    try { measure(frame, name, width); } catch (error) { found.push({name, width, error: String(error)}); }
    if (--left === 0) document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script>"""


def chromium(folder, *arguments):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory, thousand):
    """The text of every page, by name: runs and sweeps, with what could break them."""
    folder = tmp_path_factory.mktemp("pages")
    run = real_run(folder / "run")
    odd = {"step_s": float("nan"), "imbalance": float("nan")}
    path = "<b onload=alert()>" + "long_name/" * 20
    results = {
        "run": run,
        "one_gpu": real_run(folder / "one", "topology.nodes=1", "topology.gpus_per_node=1"),
        "dropping": real_run(folder / "dropping", "capacity.factor=0.75", "network=bound"),
        "trained": trained_run(folder / "trained", "parallel.pipeline=4", "parallel.order=dualpipe"),
        "thousand": thousand,
        "one_job": made_sweep(folder / "one_job", run, [({"seed": "1"}, {})]),
        "failed": made_sweep(folder / "failed", run, [({"seed": str(i)}, None) for i in range(3)]),
        "nan": made_sweep(folder / "nan", run, [({"seed": str(i)}, odd if i else {}) for i in range(3)]),
        "names": made_sweep(
            folder / "names", run,
            [({"trace.path": f"{path}{i}"}, {"step_s": 1e-3 * (1 + i), "drop_rate": i / 9}) for i in range(9)],
        ),
    }  # fmt: skip
    return {name: write_report(path, folder / f"{name}.html")[1][0] for name, path in results.items()}


def measured(pages, folder, scheme):
    told = {name: file.read_text() for name, file in pages.items()}
    page = folder / "harness.html"
    page.write_text(HARNESS % (json.dumps(told).replace("</", "<\\/"), json.dumps(WIDTHS)))
    shown = chromium(folder, f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom", f"file://{page}")
    told = re.search(r"FOUND(.*)END", shown, flags=re.S)
    assert told, shown[:2000]
    return json.loads(told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture(scope="module")
def light(pages, tmp_path_factory):
    return measured(pages, tmp_path_factory.mktemp("light"), 1)


def test_every_page_fits_every_width(pages, light):
    """Nothing but tables scrolls sideways, no text of a figure is cut off or too small, and each figure is shown once."""
    assert len(light) == len(pages) * len(WIDTHS)
    for page in light:
        where = f"{page['name']} at {page['width']}"
        assert "error" not in page, (where, page)
        assert page["inner"] == page["width"], where
        assert page["overflow"] <= 0, where
        assert page["outside"] == [], where
        assert page["blank"] == [], where
        assert set(page["ones"]) <= {1}, where
        assert page["smallest"] is None or page["smallest"] >= LEAST, where
        assert page["head"] < 400, f"{where}: the headline is on the first screen"
        assert page["fetched"] == 0, where


def test_a_click_on_a_heading_sorts(light):
    """Up, then down; words (`null`) stay behind the numbers. It also shows that the script runs."""
    tables = {page["name"]: page["sorted"] for page in light if page["sorted"]}
    assert tables.keys() >= {"run", "thousand", "nan"}
    for cells in tables.values():
        assert sorted(cells["before"]) == sorted(cells["up"]) == sorted(cells["down"]), "no row is lost"
        up, down = ([float(text) for text in cells[way] if re.fullmatch(r"[\d.]+", text)] for way in ("up", "down"))
        assert up == sorted(up)
        assert down == up[::-1]
    assert len(set(tables["thousand"]["up"])) == 5
    assert tables["thousand"]["up"][-1] == tables["thousand"]["down"][-1] == "null"


def test_dark_is_dark(pages, light, tmp_path):
    """The same page under the other preference: the ground and the ink trade places."""
    def brightness(colour):
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3

    dark = measured({"run": pages["run"]}, tmp_path, 0)
    for page, bright, deep in ((light[0], "ground", "ink"), (dark[0], "ink", "ground")):
        assert brightness(page[bright]) > 220
        assert brightness(page[deep]) < 40


def test_a_thousand_jobs_print_on_a_few_pages(pages, tmp_path):
    """The table is cut to its first sixty rows on paper."""
    target = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={target}", f"file://{pages['thousand']}")
    count = len(re.findall(rb"/Type\s*/Page\b", target.read_bytes()))
    assert 3 <= count <= 12
