"""What the style sheet of a search's report has beyond that of the data pages."""

import re

STYLE = """
:root {
  --parameters: #3f74b5; --optimizer: #86abd9; --batch: #b8ad8a; --activations: #2c8a60; --temporaries: #8d7cb8;
  --wanted: #c9c4ba;
  --products: #3f74b5; --other-compute: #9dbbe0; --kernels: #2c8a60; --exposed-communication: #cf6a3c;
  --memory-moves: #b8a77c; --all-gather: #d79b3c; --all-reduce: #bf4b3a; --reduce-scatter: #9a4f8f;
  --all-to-all: #3f8f95; --collective-permute: #7d8a3a; --send: #55606e; --waiting: #f0d9cd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --parameters: #6d9fdb; --optimizer: #3f638f; --batch: #8c8363; --activations: #48b080; --temporaries: #9d8bd0;
    --wanted: #565c64;
    --products: #6d9fdb; --other-compute: #3f638f; --kernels: #48b080; --exposed-communication: #e08556;
    --memory-moves: #94855d; --all-gather: #d9a24a; --all-reduce: #e0705f; --reduce-scatter: #c07ab5;
    --all-to-all: #5fb5bb; --collective-permute: #a5b45c; --send: #aab4c0; --waiting: #4a342a;
  }
}
.best { font-size: 1.02rem; }
.findings li.best { border-left-color: rgb(var(--learned)); }
td.name, th.name { text-align: left; white-space: normal; min-width: 11rem; overflow-wrap: anywhere; }
td.first { color: rgb(var(--learned)); font-weight: 600; }
.ranks th:first-child { min-width: 2rem; width: 2rem; white-space: nowrap; }
.bars { display: grid; gap: .5rem; margin: .7rem 0; font-size: .85rem; }
.stack { display: grid; grid-template-columns: minmax(9rem, 21rem) minmax(6rem, 1fr) minmax(9rem, 19rem);
  gap: .2rem .9rem; align-items: center; }
.stack .label { overflow-wrap: anywhere; }
.stack .label b { color: var(--quiet); font-weight: 500; margin-right: .35rem; font-variant-numeric: tabular-nums; }
.stack .said { color: var(--quiet); font-size: .8rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.stack .said b { color: var(--ink); font-size: .85rem; }
.stack svg { display: block; width: 100%; height: 1.15rem; overflow: visible; background: var(--faint); }
.limit { stroke: var(--bad); stroke-width: 2px; vector-effect: non-scaling-stroke; fill: none; }
.legend { margin: .5rem 0; }
.legend i.line { width: 2px; border-radius: 0; background: var(--bad); margin-left: .4rem; }
.beside { display: grid; gap: .9rem 1.4rem; align-items: start; }
.beside .chart { min-width: 0; }
.pareto text, .lanes text { fill: var(--quiet); font-size: 12px; }
.pareto .grid { stroke: var(--line); fill: none; }
.pareto .front { stroke: rgb(var(--learned)); stroke-width: 2; fill: none; stroke-dasharray: 4 3; }
.pareto circle { fill: var(--text); stroke: var(--card); stroke-width: 1.5; }
.pareto circle.on { fill: rgb(var(--learned)); }
.pareto text.point { fill: var(--ink); font-weight: 600; }
.pareto .axis-name { fill: var(--ink); }
.scroll { overflow-x: auto; }
.lanes { display: block; width: 100%; min-width: 860px; height: auto; margin: .3rem 0; }
.lanes text { font-size: 11px; }
.lanes .lane { fill: var(--faint); }
.lanes .waits { fill: var(--waiting); }
.lanes .lane-name { fill: var(--ink); }
.lanes .told { fill: var(--ink); font-size: 10.5px; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.lanes .leader { stroke: var(--quiet); stroke-width: .7; fill: none; }
.lanes .tickline { stroke: var(--line); fill: none; }
.layer { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .9rem;
  margin: .9rem 0; }
.layer h3 { overflow-wrap: anywhere; }
.layer h4 { font-size: .85rem; font-weight: 600; margin: .8rem 0 .1rem; }
.layer p { font-size: .85rem; margin: .2rem 0; }
summary b { margin-right: .35rem; font-weight: 500; }
details .wide { margin: .3rem 0 .8rem; }
.plain li { margin: .25rem 0; overflow-wrap: anywhere; }
.plain { padding-left: 1.2rem; font-size: .88rem; }
@media (min-width: 820px) {
  .beside { grid-template-columns: minmax(0, 7fr) minmax(0, 4fr); }
  .pareto text { font-size: 10px; }
}
@media (max-width: 560px) {
  .stack { grid-template-columns: minmax(0, 1fr); gap: .15rem; }
  .bars { gap: .9rem; }
  .pareto text { font-size: 17px; }
  .pareto circle { r: 7px; }
}
"""

COLOURS = tuple(re.findall(r"--([\w-]+):", STYLE.partition("@media")[0]))


def colour_class(kind: str) -> str:
    """The class of a part of memory or time, or of a kind of collectives."""
    name = kind.replace("ragged-", "").replace(" ", "-")
    return name if name in COLOURS else "memory-moves"


def sheet() -> str:
    """The rules above, and for each class its colour."""
    fills = "".join(
        f"rect.{name} {{ fill: var(--{name}); }} i.{name} {{ background: var(--{name}); }}\n" for name in COLOURS
    )
    return STYLE + fills
