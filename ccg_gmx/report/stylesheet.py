"""The style sheet of the report: light and dark, phone to wide screen, print."""

CSS = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5a6472; --page: #f4f5f7; --card: #ffffff;
  --line: #dfe3e8;
  --ours: #0060a8; --fine: #9aa3ae; --fine-fill: #d5dae0; --plain: #8a5a9e; --good: #1a7a4c; --bad: #b23a20;
  --good-back: #e9f5ee; --bad-back: #fbeeea; --bar: #3c83b8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a2abb7; --page: #14171b; --card: #1d2126; --line: #343a42; --ours: #6db3ea;
    --fine: #8993a0; --fine-fill: #3a424c; --plain: #c79bda; --good: #63c793; --bad: #f08a70;
    --good-back: #1a2b22; --bad-back: #33221e; --bar: #4f93c4; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 "Helvetica Neue", Arial, "Liberation Sans", "DejaVu Sans", sans-serif; }
.page { max-width: 1280px; margin: 0 auto; padding: 28px 20px 60px; }
header h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 2px; font-weight: 600; letter-spacing: -0.01em; }
header p { margin: 0; color: var(--soft); }
nav { margin: 18px 0 0; font-size: 0.9rem; }
nav ol { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0; padding: 0; }
a { color: var(--ours); text-decoration: none; }
a:hover { text-decoration: underline; }
section, .verdict { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 22px 22px; margin-top: 18px; scroll-margin-top: 12px; min-width: 0; }
h2 { font-size: 1.2rem; font-weight: 600; margin: 0 0 6px; }
h3 { font-size: 1rem; font-weight: 600; margin: 22px 0 4px; }
p { margin: 6px 0; max-width: 90ch; }
.verdict { border-left: 5px solid var(--good); background: var(--good-back); }
.verdict.not-yet { border-left-color: var(--bad); background: var(--bad-back); }
.verdict h2 { font-size: 1.3rem; }
.verdict ul { margin: 6px 0 0; padding-left: 1.2em; max-width: 90ch; }
.verdict li { margin: 3px 0; }
.note, figcaption, .soft { color: var(--soft); font-size: 0.88rem; line-height: 1.45; }
.figures { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 16px; margin-top: 12px; }
.figures.wide { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.figures.broad { grid-template-columns: minmax(0, 1fr); }
.figures.broad figure { max-width: 760px; } .figures.broad img { max-width: 760px; }
@media (max-width: 900px) {
  .figures, .figures.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); } }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 205px), 1fr)); }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; max-width: 520px; height: auto; background: #fff;
  border-radius: 4px; }
figcaption { margin-top: 6px; }
figcaption b { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 0.82rem; vertical-align: bottom; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
td { vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.numbers td:nth-child(2), .numbers td:nth-child(3) { white-space: nowrap; }
.numbers td:nth-child(2) { font-weight: 600; }
.turns td, .turns th { white-space: nowrap; }
.mark { white-space: nowrap; font-weight: 600; }
.mark.good { color: var(--good); } .mark.bad { color: var(--bad); } .mark.none { color: var(--soft);
  font-weight: 400; }
.bars { margin-top: 10px; display: grid; grid-template-columns: max-content 1fr; gap: 6px 14px;
  font-size: 0.9rem; align-items: center; }
.bar { display: flex; align-items: center; gap: 8px; white-space: nowrap; min-width: 0; padding-right: 6.5em; }
.bar i { display: block; height: 13px; min-width: 2px; background: var(--bar); border-radius: 2px; flex: none;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.bar span { flex: none; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 14px 16px;
  margin-top: 10px; }
.multiple svg { display: block; width: 100%; height: 58px; overflow: visible; }
.multiple .name { font-size: 0.84rem; line-height: 1.3; overflow-wrap: anywhere; }
.multiple .ends { display: flex; justify-content: space-between; font-size: 0.74rem; color: var(--soft); }
.multiple .js { font-size: 0.74rem; color: var(--soft); }
.multiple .js.far { color: var(--bad); font-weight: 600; }
.multiples path, .key path { vector-effect: non-scaling-stroke; }
path.fine { fill: var(--fine-fill); stroke: var(--fine); stroke-width: 0.8; }
path.weighted { fill: none; stroke: var(--ours); stroke-width: 1.8; }
path.plain { fill: none; stroke: var(--plain); stroke-width: 1.1; stroke-dasharray: 3 2; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 0.86rem; margin-top: 8px; }
.key svg { width: 26px; height: 12px; margin-right: 6px; vertical-align: -1px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 2px 32px;
  margin: 8px 0 0; font-size: 0.9rem; }
dl div { display: flex; justify-content: space-between; gap: 14px; border-bottom: 1px solid var(--line);
  padding: 4px 0; min-width: 0; }
dt { color: var(--soft); flex: none; max-width: 55%; overflow-wrap: anywhere; } dd { margin: 0; text-align: right;
  overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--ours); font-size: 0.92rem; }
ul.plain-list { margin: 6px 0 0; padding-left: 1.2em; max-width: 90ch; }
footer { margin-top: 22px; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 560px) {
  .page { padding: 16px 10px 40px; } section, .verdict { padding: 14px 14px 18px; }
  .bars { grid-template-columns: 1fr; gap: 1px; } .bar { margin-bottom: 6px; }
  .numbers thead { display: none; }
  .numbers tr { display: grid; grid-template-columns: 1fr max-content; gap: 0 10px; padding: 8px 0;
    border-bottom: 1px solid var(--line); }
  .numbers td { border: 0; padding: 1px 0; } .numbers td:nth-child(1) { grid-column: 1; }
  .numbers td:nth-child(2) { grid-column: 2; text-align: right; } .numbers td:nth-child(3) { grid-column: 1;
    color: var(--soft); }
  .numbers td:nth-child(4) { grid-column: 2; text-align: right; }
  .numbers td:nth-child(5) { grid-column: 1 / -1; color: var(--soft); font-size: 0.88rem; } }
@media print {
  body { background: #fff; font-size: 11pt; } .page { max-width: none; padding: 0; } nav { display: none; }
  section, .verdict { border-color: #ccc; } figure, .multiple, tr, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
"""
