"""The look of a page: one style sheet and one small script, both inside the page. Nothing is fetched."""

from clustersim.report.shapes import DARK, LIGHT
from clustersim.report.svg import FONT


def _variables(colours: dict[str, str], page: str, card: str) -> str:
    return "".join(f"--{role}:{colour};" for role, colour in colours.items()) + f"--page:{page};--card:{card};"


_LIGHT, _DARK = _variables(LIGHT, "#f6f7f9", "#ffffff"), _variables(DARK, "#0e1114", "#15191e")

STYLE = (
    f":root{{color-scheme:light dark;{_LIGHT}}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}\n"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}--page:#fff}}}}\n"
    f"body{{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 {FONT};overflow-wrap:anywhere}}\n"
    """
body{-webkit-text-size-adjust:100%}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
header p.kind{margin:0;color:var(--muted);font-size:14px;overflow-wrap:anywhere}
h1{font-size:30px;line-height:1.2;letter-spacing:-.015em;margin:6px 0 12px;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:20px;letter-spacing:-.01em;margin:40px 0 12px}
h3{font-size:16px;margin:0 0 4px}
.lead{font-size:17px;max-width:70ch;margin:0 0 8px}
.lead+.lead{color:var(--muted);font-size:16px}
.tiles{display:grid;grid-template-columns:repeat(var(--all),1fr);background:var(--card);
border:1px solid var(--grid);border-radius:10px;overflow:hidden;margin:22px 0 8px}
.tiles div{box-shadow:0 0 0 .5px var(--grid);padding:12px 11px;min-width:0}
.tiles dt{font-size:12.5px;color:var(--muted);margin:0}
.tiles dd{margin:0}
.tiles dd.v{font-size:20px;font-weight:600;letter-spacing:-.01em;font-variant-numeric:tabular-nums;white-space:nowrap}
.tiles dd.r{font-size:12.5px;color:var(--muted)}
section.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px;margin-top:16px}
figure,.card{margin:16px 0 0;background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:16px 18px;min-width:0}
section.pair>*{margin:0}
figcaption p,.card>p{margin:0 0 10px;color:var(--muted);font-size:14px}
svg{display:block;width:100%;height:auto;font-family:inherit}
svg.narrow{display:none}
.scroll{overflow:auto;max-height:75vh;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;width:100%}
th,td{overflow-wrap:normal;padding:5px 10px 5px 0;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th:last-child,td:last-child{padding-right:4px}
th{position:sticky;top:0;background:var(--card);color:var(--muted);font-weight:600;font-size:13px;vertical-align:bottom}
th.s{cursor:pointer}th.s:hover{color:var(--ink)}
th[aria-sort=ascending]:after{content:" ↑"}th[aria-sort=descending]:after{content:" ↓"}
th:first-child,td:first-child,table.text td,table.text th{text-align:left}
table.text td{white-space:normal;overflow-wrap:anywhere;vertical-align:top}
table.text td:first-child{white-space:nowrap;overflow-wrap:normal}
tr.best td{font-weight:600}tr.best td:first-child{box-shadow:inset 3px 0 var(--best)}
td:first-child,th:first-child{padding-left:9px}
.bar{display:inline-block;height:9px;background:var(--plain);border-radius:1px;vertical-align:baseline}
details{margin-top:16px}summary{cursor:pointer;font-weight:600}
code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
ul.notes{margin:12px 0 0;padding-left:18px;color:var(--muted);font-size:14px}
footer{margin-top:40px;color:var(--muted);font-size:13px;overflow-wrap:anywhere}
@media (max-width:1000px){svg.half{display:none}svg.half+svg.narrow{display:block}
.tiles{grid-template-columns:repeat(var(--some),1fr)}}
@media (max-width:700px){section.pair{grid-template-columns:1fr}}
@media (max-width:600px){main{padding:18px 12px 40px}h1{font-size:24px}.lead{font-size:16px}
svg.wide{display:none}svg.narrow{display:block}figure,.card{padding:12px 10px}
.tiles{grid-template-columns:1fr 1fr}.tiles dd.v{font-size:19px}}
@media print{main{max-width:none;padding:0}figure,.card,.tiles{break-inside:avoid;border-color:#ccc}
.scroll{max-height:none;overflow:visible}
table{font-size:9pt}th,td{padding:2px 5px 2px 0;white-space:normal}th{position:static}
tr.far{display:none}h2{break-after:avoid}svg.wide,svg.half{display:block}svg.narrow,svg.half+svg.narrow{display:none}.tiles{grid-template-columns:repeat(var(--some),1fr)}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
)

# A click on a heading sorts its table; cells carry the number they were made of where that is not what they show.
SCRIPT = """
for (const th of document.querySelectorAll("th.s")) {
  th.tabIndex = 0;
  const sort = () => {
    const up = th.getAttribute("aria-sort") !== "ascending", body = th.closest("table").tBodies[0], at = th.cellIndex;
    for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => { const c = row.cells[at], v = c.dataset.v ?? c.textContent; return v === "" || isNaN(v) ? v : +v; };
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => {
      const kinds = (typeof a === "string") - (typeof b === "string");
      return kinds || (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...rows.map(pair => pair[1]));
  };
  th.onclick = sort;
  th.onkeydown = event => { if (event.key === "Enter") sort(); };
}
"""
