"""The report's one page as a jinja2 template. Nothing in it reaches out to a network."""

from __future__ import annotations

STYLE = """
:root { --ink:#1f2430; --muted:#6b7284; --line:#e3e6ee; --soft:#f6f7fa; --blue:#3457d5;
        --good:#1c7f4f; --good-soft:#e5f5ec; --bad:#b3322b; --bad-soft:#fcebe9;
        --warn:#8a6100; --warn-soft:#fdf3da; }
* { box-sizing: border-box; }
body { margin:0; color:var(--ink); background:#fff; line-height:1.5;
       font:15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width:1120px; margin:0 auto; padding:40px 28px 80px; }
h1 { font-size:28px; line-height:1.2; margin:0 0 4px; letter-spacing:-.01em; }
h2 { font-size:20px; margin:52px 0 6px; letter-spacing:-.005em; }
h3 { font-size:14px; margin:26px 0 8px; }
p { margin:0 0 12px; max-width:76ch; }
.muted { color:var(--muted); }
nav { margin:18px 0 0; display:flex; flex-wrap:wrap; gap:6px 18px; font-size:14px; }
nav a { color:var(--blue); text-decoration:none; }
nav a:hover { text-decoration:underline; }
.summary { display:flex; flex-wrap:wrap; gap:12px; margin:24px 0 8px; }
.tile { flex:1 1 150px; padding:14px 16px; border:1px solid var(--line); border-radius:10px; }
.tile b { display:block; font-size:24px; line-height:1.25; font-variant-numeric:tabular-nums; }
.tile span { color:var(--muted); font-size:13px; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; width:100%; min-width:860px; font-size:14px;
        font-variant-numeric:tabular-nums; }
th { text-align:left; color:var(--muted); font-weight:600; font-size:12.5px; }
th, td { padding:7px 12px 7px 0; border-bottom:1px solid var(--line); vertical-align:top; }
th:last-child, td:last-child { padding-right:0; }
td.value { font-weight:650; white-space:nowrap; }
td.absent { font-weight:400; color:var(--muted); }
tr.part td { padding-top:20px; border-bottom:1px solid #c9cedb; font-weight:650; }
.badge { display:inline-block; padding:1px 9px; border-radius:20px; font-size:12.5px;
         font-weight:600; white-space:nowrap; }
.met, .right { color:var(--good); background:var(--good-soft); }
.not-met, .wrong { color:var(--bad); background:var(--bad-soft); }
.not-judged { color:var(--warn); background:var(--warn-soft); }
img { display:block; }
.pixel { image-rendering:pixelated; border-radius:6px; }
.pairs { display:grid; grid-template-columns:repeat(auto-fill, minmax(150px, 1fr)); gap:22px 18px; }
.pairs figure { margin:0; }
.pairs .stack { display:grid; gap:4px; }
.pairs img { width:100%; aspect-ratio:1; object-fit:contain; background:var(--soft); }
figcaption { font-size:12.5px; color:var(--muted); margin-top:5px; }
.prompts { display:grid; grid-template-columns:repeat(auto-fill, minmax(460px, 1fr)); gap:16px; }
.card { border:1px solid var(--line); border-radius:10px; padding:14px; min-width:0; }
.card .prompt { font-weight:600; margin:0 0 10px; overflow-wrap:anywhere; }
.drawings { display:grid; grid-template-columns:repeat(4, 1fr); gap:12px; }
.drawings figure { margin:0; min-width:0; }
.drawings img { width:100%; aspect-ratio:1; object-fit:contain; background:var(--soft); }
.drawings .badge { margin-top:6px; }
.reason { font-size:12px; line-height:1.35; color:var(--muted); margin-top:3px;
          overflow-wrap:anywhere; }
.questions { display:grid; grid-template-columns:repeat(auto-fill, minmax(330px, 1fr)); gap:14px; }
.qa { display:grid; grid-template-columns:104px 1fr; gap:14px; }
.qa img { width:104px; aspect-ratio:1; object-fit:contain; background:var(--soft); }
.qa p { margin:0 0 6px; overflow-wrap:anywhere; }
.qa .answer { font-weight:650; }
.bar { display:grid; grid-template-columns:120px 1fr 56px 210px; gap:14px; align-items:center;
       font-size:14px; margin:7px 0; font-variant-numeric:tabular-nums; }
.track { position:relative; height:12px; background:var(--soft); border-radius:6px; }
.bar b { text-align:right; }
.bar .muted { font-size:13px; white-space:nowrap; }
.fill { position:absolute; inset:0 auto 0 0; background:var(--blue); border-radius:6px; }
.tick { position:absolute; top:-3px; bottom:-3px; width:2px; background:var(--ink); }
.tick.top { background:var(--good); }
.plot { width:100%; max-width:1060px; height:auto; }
dl { display:grid; grid-template-columns:minmax(150px, max-content) 1fr; gap:3px 18px; margin:0;
     font-size:13.5px; }
dt { color:var(--muted); } dd { margin:0; overflow-wrap:anywhere; }
.facts { display:grid; grid-template-columns:repeat(auto-fit, minmax(420px, 1fr)); gap:0 44px; }
.wide { grid-column:1 / -1; }
code { font:12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width:640px) {
  main { padding:24px 16px 60px; } .facts { grid-template-columns:1fr; }
  .prompts, .questions { grid-template-columns:1fr; }
  .bar { grid-template-columns:1fr; gap:3px; margin:12px 0; } .bar b { text-align:left; }
}
@media print { .card, .pairs figure { break-inside:avoid; } nav { display:none; } }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<div class="muted">{{ subtitle }}</div>
<nav>
<a href="#table">Table</a>
{% if pairs %}<a href="#reconstruction">Reconstructions</a>{% endif %}
{% if drawings %}<a href="#drawings">Drawings</a>{% endif %}
{% if questions %}<a href="#questions">Questions</a>{% endif %}
{% if curves %}<a href="#curves">Training</a>{% endif %}
{% if histogram %}<a href="#codes">Codes</a>{% endif %}
{% if protocol %}<a href="#protocol">Protocol</a>{% endif %}
</nav>
<div class="summary">
{% for tile in tiles %}<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.name }}</span></div>
{% endfor %}</div>
</header>

<section id="table">
<h2>The table</h2>
<p class="muted">Pictures, questions and prompts are of the held-out split: combinations of colour,
shape and relation that were never trained. Zero-shot takes all pairs and reports them apart. A
verdict stands only beside a number that has a target.</p>
<div class="scroll"><table>
<thead><tr><th>Metric</th><th>Value</th><th>Baseline</th><th>Target</th><th>Verdict</th>
<th>Note</th></tr></thead>
<tbody>
{% for row in rows %}
{% if loop.changed(row.part) %}<tr class="part"><td colspan="6">{{ row.part|capitalize }}</td></tr>
{% endif %}
<tr><td>{{ row.metric }}</td>
<td class="value{{ ' absent' if row.value is none }}">{{ row.value_text }}</td>
<td>{{ row.baseline_text }}</td><td>{{ row.criterion }}</td>
<td>{% if row.verdict %}<span class="badge {{ row.verdict|replace(' ', '-') }}">
{{- row.verdict }}</span>{% endif %}</td>
<td class="muted">{{ row.note }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>

{% if pairs %}
<section id="reconstruction">
<h2>Reconstructions</h2>
<p class="muted">{{ pairs_legend }}</p>
<div class="pairs">
{% for pair in pairs %}
<figure><div class="stack">
{% for image in pair.images %}<img class="pixel" src="{{ image.src }}" alt="{{ image.alt }}">
{% endfor %}</div>
<figcaption>{{ pair.caption }}</figcaption></figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if drawings %}
<section id="drawings">
<h2>Drawings beside their prompts</h2>
<p class="muted">{{ drawings_legend }}</p>
{% for category in drawings %}
{{ bar(category) }}
{% endfor %}
{% for category in drawings if category.prompts %}
<h3>{{ category.name|capitalize }}</h3>
<div class="prompts">
{% for prompt in category.prompts %}
<div class="card"><p class="prompt">{{ prompt.text }}</p><div class="drawings">
{% for picture in prompt.pictures %}
<figure><img class="pixel" src="{{ picture.src }}" alt="drawing {{ loop.index }}">
<span class="badge {{ picture.mark }}">{{ picture.mark }}</span>
<div class="reason">{{ picture.reason }}</div></figure>
{% endfor %}
</div></div>
{% endfor %}
</div>
{% endfor %}
</section>
{% endif %}

{% if questions %}
<section id="questions">
<h2>Questions beside their answers</h2>
<p class="muted">{{ questions_legend }}</p>
{% for kind in kinds %}
{{ bar(kind) }}
{% endfor %}
<h3>A random sample</h3>
<div class="questions">
{% for item in questions %}
<div class="card qa"><img class="pixel" src="{{ item.src }}" alt="picture of the question">
<div><p>{{ item.question }}</p>
<p><span class="answer">{{ item.answer or '(nothing)' }}</span>
<span class="badge {{ item.mark }}">{{ item.mark }}</span></p>
{% if item.mark == 'wrong' %}<p class="muted">expected: {{ item.expected }}</p>{% endif %}
</div></div>
{% endfor %}
</div>
</section>
{% endif %}

{% if curves %}
<section id="curves">
<h2>Training</h2>
<img class="plot" src="{{ curves }}" alt="loss curves of each run">
</section>
{% endif %}

{% if histogram %}
<section id="codes">
<h2>How the codebook is used</h2>
<p class="muted">{{ histogram_legend }}</p>
<img class="plot" src="{{ histogram }}" alt="occurrences of each code, sorted">
</section>
{% endif %}

{% if protocol %}
<section id="protocol">
<h2>Protocol</h2>
<p class="muted">What must be held equal to get these numbers again.</p>
<div class="facts">
{% for group in protocol %}
<div{% if group.wide %} class="wide"{% endif %}><h3>{{ group.name|capitalize }}</h3><dl>
{% for name, value in group.facts %}<dt>{{ name }}</dt><dd>
{%- if group.wide %}<code>{{ value }}</code>{% else %}{{ value }}{% endif %}</dd>
{% endfor %}</dl></div>
{% endfor %}
</div>
</section>
{% endif %}
</main>
</body>
</html>
"""

BAR = """{% macro bar(entry) %}
<div class="bar"><span>{{ entry.name|capitalize }}</span>
<div class="track"><div class="fill" style="width:{{ '%.1f' % (100 * entry.score) }}%"></div>
{% if entry.baseline is not none %}<div class="tick" style="left:
{{- '%.1f' % (100 * entry.baseline) }}%"></div>{% endif %}
{% if entry.ceiling is not none %}<div class="tick top" style="left:
{{- '%.1f' % (100 * entry.ceiling) }}%"></div>{% endif %}</div>
<b>{{ '%.1f' % (100 * entry.score) }}%</b><span class="muted">
{%- if entry.baseline is not none %} baseline {{ '%.1f' % (100 * entry.baseline) }}%{% endif %}
{%- if entry.ceiling is not none %}, ceiling {{ '%.1f' % (100 * entry.ceiling) }}%{% endif -%}
</span></div>
{% endmacro %}"""
