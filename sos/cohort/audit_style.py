"""The look of the audit's page: light and dark, on screen and in print; the two filters work without a script."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #59636e; --line: #d5dae0; --panel: #f5f7f9; --link: #0550ae;
  --error: #b3261e; --warning: #7a4b00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --faint: #a3adb8; --line: #39414a; --panel: #1d2228;
  --link: #79b8ff; --error: #ff9a90; --warning: #f0b955; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; font: 15px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
  background: var(--paper); color: var(--ink); }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h2 small { color: var(--faint); font-weight: normal; }
a { color: var(--link); }
.virtual { font-weight: 600; margin: .3rem 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; padding: 0; margin: 1rem 0; list-style: none; }
.tiles li { background: var(--panel); border: 1px solid var(--line); border-radius: 6px; padding: .4rem .9rem; }
.tiles b { font-size: 1.25rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .6rem; }
.charts figure { margin: 0; max-width: 20rem; padding: .3rem; background: var(--panel); border: 1px solid var(--line); border-radius: 6px; }
.charts svg { display: block; width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; }
table.kinds { width: auto; min-width: 24rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--faint); font-weight: 600; font-size: .85rem; border-bottom-width: 2px; }
.group table { table-layout: fixed; }
.group th:nth-child(1) { width: 3.5rem; } .group th:nth-child(2) { width: 16%; } .group th:nth-child(3) { width: 18%; }
.group th:nth-child(6) { width: 180px; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.badge { font-size: .85rem; font-weight: 600; white-space: nowrap; }
.badge.error { color: var(--error); } .badge.warning { color: var(--warning); }
td img { display: block; max-width: 160px; height: auto; background: #000; }
.none, .rest, footer { color: var(--faint); }
.rest { margin: .2rem .6rem; }
footer { margin-top: 2.5rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: .85rem; }
body:has(#errors:not(:checked)) main .error, body:has(#warnings:not(:checked)) main .warning { display: none; }
@media print { :root { --paper: #fff; --ink: #000; --faint: #444; --line: #bbb; --panel: #fff; --link: #000; --error: #8c1d18;
  --warning: #5c3900; } body { max-width: none; padding: 0; font-size: 10pt; } .filter { display: none; }
  tr, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""
