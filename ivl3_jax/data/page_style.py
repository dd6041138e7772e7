"""The style sheet of `data.inspection_page`: one column of text and tables, in light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f7f6f3; --card: #ffffff; --ink: #20242a; --quiet: #626b76; --line: #e2e0da; --faint: #efede8;
  --text: #9fadbd; --visual: #d79b3c; --learned: 44 138 96; --padding: #e6e3dc; --blue: #3f74b5; --bad: #b3372f;
  --chip: #eceae5; --chip-ink: #5a636e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e3e6ea; --quiet: #98a2ae; --line: #2e343c; --faint: #22272e;
    --text: #66788c; --visual: #c98f35; --learned: 72 176 128; --padding: #2a3038; --blue: #6d9fdb; --bad: #ef8a80;
    --chip: #2a3038; --chip-ink: #a9b3bf;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
h3 { font-size: .95rem; margin: 0; }
p { margin: .3rem 0 .8rem; }
.quiet { color: var(--quiet); }
.top > .quiet { margin: 0; font-size: .85rem; }
.bad { color: var(--bad); }
.about { display: flex; flex-wrap: wrap; gap: .35rem 1.6rem; margin: 0; font-size: .87rem; }
.about div { display: flex; gap: .45rem; min-width: 0; }
.about dt { color: var(--quiet); }
.about dd { margin: 0; overflow-wrap: anywhere; }
.headline { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.6rem 0 1rem;
  background: var(--line); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.headline div { flex: 1 1 135px; background: var(--card); padding: .8rem 1rem; }
.headline b { display: block; font-size: 1.45rem; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.headline span { color: var(--quiet); font-size: .82rem; line-height: 1.3; display: block; }
.findings { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: .45rem; }
.findings li { background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--visual);
  border-radius: 6px;
  padding: .5rem .9rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; text-align: right; border-top: 1px solid var(--line); white-space: nowrap; }
thead th { border-top: 0; color: var(--quiet); font-weight: 500; vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
tfoot th, tfoot td { border-top: 2px solid var(--line); color: var(--quiet); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); gap: .9rem; }
.chart { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .8rem .9rem; }
.chart svg { display: block; width: 100%; height: auto; margin: .4rem 0 .2rem; overflow: visible; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .1rem .9rem; color: var(--quiet); font-size: .8rem; }
.chart figcaption b { color: var(--ink); font-weight: 600; }
.bar { fill: var(--blue); } .column { fill: transparent; } g:hover > .column { fill: var(--faint); }
.axis { stroke: var(--line); fill: none; }
.tick { fill: var(--quiet); font-size: 11px; text-anchor: middle; }
.tick:first-of-type { text-anchor: start; }
.fills { display: grid; gap: .35rem; margin: .5rem 0 .8rem; max-width: 46rem; font-size: .85rem; }
.fill { display: grid; grid-template-columns: 4.6rem 1fr 12rem; gap: .7rem; align-items: center; }
.fill > :first-child, .fill > :last-child { color: var(--quiet); font-variant-numeric: tabular-nums; }
.track { height: .55rem; background: var(--padding); border-radius: 1rem; overflow: hidden; }
.track span { display: block; height: 100%; background: var(--blue); }
.track .tiles { background: var(--visual); } .track .segments { background: var(--text); }
.reason { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1rem;
  margin: .7rem 0; }
.reason h3 .quiet { font-weight: 400; margin-left: .4rem; }
.reason ul { margin: .4rem 0 0; padding-left: 1.1rem;
  font: .82rem/1.5 ui-monospace, "Cascadia Mono", Menlo, monospace; }
.reason li { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--quiet); font-size: .87rem; margin: .5rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .84rem; color: var(--quiet); }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 3px; margin-right: .4rem;
  vertical-align: -1px; }
i.text { background: var(--text); } i.visual { background: var(--visual); }
i.learned { background: rgb(var(--learned)); } i.padding { background: var(--padding); }
.row { margin: 1.6rem 0 2.6rem; }
.row > h3 { font-size: 1.05rem; }
.row > p { margin: .1rem 0 .4rem; font-size: .88rem; }
.strip { display: block; width: 100%; height: 26px; border-radius: 5px; margin: .2rem 0 .8rem; }
.strip .text { fill: var(--text); } .strip .visual { fill: var(--visual); }
.strip .learned { fill: rgb(var(--learned)); } .strip .padding { fill: var(--padding); }
.strip .cut { stroke: var(--paper); stroke-width: 1px; vector-effect: non-scaling-stroke; fill: none; }
.segments { list-style: none; margin: 0 0 .7rem; padding: 0; display: grid; gap: .7rem;
  grid-template-columns: minmax(0, 1fr); }
.segment { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.segment header { display: flex; flex-wrap: wrap; gap: .1rem .6rem; align-items: baseline;
  padding: .45rem .9rem; font-size: .84rem;
  background: var(--faint); }
.segment .number { color: var(--quiet); min-width: 1.2rem; }
.segment .where { color: var(--quiet); overflow-wrap: anywhere; }
.segment .facts { color: var(--quiet); margin-left: auto; }
.chosen { color: rgb(var(--learned)); } .rejected { color: var(--bad); }
.body { padding: .8rem .9rem; display: grid; gap: .8rem 1.2rem; grid-template-columns: minmax(0, 1fr); }
.pictures { display: flex; flex-wrap: wrap; gap: .7rem; align-content: flex-start; }
.pictures figure { margin: 0; max-width: 100%; }
.pictures figcaption { color: var(--quiet); font-size: .76rem; margin-top: .25rem; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 2px; }
.tiles { display: flex; gap: .5rem; align-items: flex-end; }
.grid { display: grid; gap: 2px; grid-template-columns: repeat(var(--columns), minmax(0, 62px)); }
.thumbnail { flex: 0 1 62px; min-width: 26px; }
.frames { gap: .4rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; line-height: 1.65; }
.chip { font: .8em/1.5 ui-monospace, "Cascadia Mono", Menlo, monospace; background: var(--chip);
  color: var(--chip-ink);
  border-radius: 4px; padding: .05rem .3rem; white-space: nowrap; }
.chip.visual { background: color-mix(in srgb, var(--visual) 28%, transparent); color: inherit; }
.fold { color: var(--quiet); font-size: .85em; font-style: italic; }
mark { color: inherit; background: rgb(var(--learned) / calc(.16 + .38 * var(--depth))); border-radius: 3px;
  padding: .1em 0;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
mark .chip { background: none; color: inherit; padding: 0 .1rem; }
@media (min-width: 820px) {
  .body.pictured { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); }
}
@media (max-width: 560px) {
  main { padding: 1.2rem .8rem 3rem; }
  .fill { grid-template-columns: 4.2rem 1fr; } .fill > :last-child { grid-column: 2; margin-top: -.3rem; }
  .segment .facts { margin-left: 0; width: 100%; }
}
"""
