"""The style sheet of the page: bars are HTML boxes, so that text keeps its size on a phone."""

# Okabe and Ito's palette for colour-blind readers, one colour a stage wherever the stage appears.
COLOURS = {
    "process start": "#8a8f98", "imports": "#a7abb3", "bundle open": "#6f7782", "engine load": "#555c66",
    "read": "#0072b2", "preprocess": "#56b4e9", "tokens": "#009e73", "encode": "#d55e00", "heads": "#cc79a7",
    "write": "#e69f00", "exit": "#8a8f98", "total": "#30343b",
}  # fmt: skip

CSS = """
:root {
  --ink: #1c1f24; --soft: #5b626d; --line: #dfe2e7; --track: #eef0f3;
  --paper: #ffffff; --card: #f7f8fa; --total: #30343b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8eaee; --soft: #9aa2ae; --line: #343a43; --track: #262b33;
    --paper: #16191e; --card: #1d2127; --total: #c9ced6;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .2rem; }
p { margin: .2rem 0 .8rem; } .soft, figcaption { color: var(--soft); } small, figcaption { font-size: .86rem; }
code { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin-top: 1rem; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.figure b { display: block; font-size: 1.55rem; line-height: 1.25; font-weight: 650; }
.figure span { color: var(--soft); font-size: .86rem; }
figure { margin: .8rem 0; }
.row { display: grid; grid-template-columns: 6.6rem 1fr 8.2rem; align-items: center; gap: .7rem; min-height: 1.75rem; }
.row.wide { grid-template-columns: 6.6rem 1fr 11.5rem; }
.row > :last-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { position: relative; height: 1.15rem; border-radius: .2rem; background: var(--track); }
.bar { position: absolute; top: 0; bottom: 0; border-radius: .2rem; min-width: 2px; }
.hatched { opacity: .45; background-image: repeating-linear-gradient(45deg, transparent 0 4px, var(--paper) 4px 6px); }
.axis { position: relative; height: 1.2rem; color: var(--soft); font-size: .8rem; }
.axis i { position: absolute; font-style: normal; transform: translateX(-50%); white-space: nowrap; }
.axis i:first-child { transform: none; } .axis i:last-child { transform: translateX(-100%); }
.strip { height: 1.5rem; background: linear-gradient(var(--line), var(--line)) center / 100% 1px no-repeat; }
.dot { position: absolute; width: 7px; height: 7px; margin: -3.5px; border-radius: 50%; opacity: .55; }
.median { position: absolute; top: .1rem; bottom: .1rem; width: 2px; margin-left: -1px; background: var(--ink); }
.interval { position: absolute; top: calc(50% - 3px); height: 6px; border-radius: 3px; min-width: 3px; }
.one { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .28rem .55rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
tr.total td { font-weight: 650; border-bottom: 0; }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .45rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1rem; margin: .6rem 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.warn { border-left: 3px solid #e69f00; padding: .3rem .8rem; background: var(--card); margin: .8rem 0; }
@media (max-width: 34rem) {
  body { padding: 1.25rem .9rem 3rem; }
  .row, .row.wide { grid-template-columns: 1fr auto; gap: 0 .6rem; padding-bottom: .35rem; }
  .row > .track, .row > .axis { grid-column: 1 / -1; grid-row: 2; }
  .row.wide { grid-template-columns: 6.6rem 1fr 11.5rem; }
.row > :last-child { text-align: right; }
  .row.only-axis > span { display: none; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
"""
