"""The page of several results as a jinja2 template, in the look of the report of one."""

from __future__ import annotations

from vqrae.eval._report_template import STYLE as _STYLE

STYLE = (
    _STYLE
    + """
.runs { display:grid; gap:6px; margin:22px 0 0; font-size:14px; }
.key { display:inline-grid; place-items:center; width:22px; height:22px; border-radius:6px;
       color:#fff; font-weight:700; font-size:12.5px; margin-right:8px; flex:none; }
.run { display:flex; align-items:center; flex-wrap:wrap; gap:0 10px; }
.run b { overflow-wrap:anywhere; }
table { min-width:0; }
.scroll + p { margin-top:10px; }
th .key { margin:0 6px 0 0; vertical-align:middle; }
th.run-head { white-space:nowrap; }
td.number { font-weight:650; white-space:nowrap; }
td .range { display:block; font-weight:400; font-size:12px; color:var(--muted); }
td.paper, th.paper { color:var(--muted); }
tr.ours td { border-bottom-color:#c9cedb; }
.notice { border:1px solid #ecd9a5; background:var(--warn-soft); color:var(--warn);
          border-radius:10px; padding:10px 14px; font-size:14px; margin:12px 0 16px;
          overflow-wrap:anywhere; }
.notice.good { border-color:#bfe3d0; background:var(--good-soft); color:var(--good); }
.notice code { color:inherit; }
.chart { display:grid; grid-template-columns:max-content 1fr max-content; gap:9px 16px;
         align-items:center; font-size:14px; margin:8px 0 12px; font-variant-numeric:tabular-nums; }
.chart .tracks { display:grid; gap:3px; }
.chart .values { display:grid; gap:3px; font-size:12.5px; text-align:right; line-height:13px; }
.chart .track { height:13px; border-radius:4px; }
.chart .fill { border-radius:4px; }
.whisker { position:absolute; top:6px; height:1.5px; background:var(--ink); }
.whisker::before, .whisker::after { content:""; position:absolute; top:-3px; width:1.5px;
         height:7.5px; background:var(--ink); }
.whisker::before { left:0; } .whisker::after { right:0; }
.gallery { display:grid; gap:16px 18px; }
.gallery figure { margin:0; min-width:0; display:grid; gap:8px; align-items:start;
                  grid-template-columns:max-content 1fr; }
.gallery .row { display:grid; gap:14px; }
.gallery img { max-width:100%; height:auto; background:var(--soft); }
.gallery .pixel { width:100%; max-width:420px; }
.gallery .alone .pixel { max-width:none; }
.gallery .key { margin:0; }
.gallery .said { font-size:13px; font-weight:600; margin:0 0 5px; overflow-wrap:anywhere; }
td.differs { background:var(--warn-soft); color:var(--warn); font-weight:600; }
td.field { white-space:nowrap; color:var(--muted); }
td.given { overflow-wrap:anywhere; min-width:140px; font-size:13px; }
details { margin:10px 0; } summary { cursor:pointer; color:var(--blue); font-size:14px; }
"""
)

PAGE = """{% macro key(run) %}<span class="key" style="background:{{ run.color }}">
{{- run.letter }}</span>{% endmacro %}
{% macro cards(rows, runs) %}
<div class="scroll"><table><thead><tr><th>Field</th>
{% for run in runs %}<th class="run-head">{{ key(run) }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr><td class="field">{{ row.field }}</td>
{% for value in row.found %}<td class="given{{ ' differs' if row.differs }}">{{ value }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
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
{% for part in parts %}<a href="#part-{{ loop.index }}">{{ part.benchmark }}</a>
{% endfor %}{% if curves %}<a href="#curves">Training</a>{% endif %}
</nav>
<div class="runs">
{% for run in runs %}<div class="run">{{ key(run) }}<b>{{ run.label }}</b>
<span class="muted">{{ run.facts }}</span></div>
{% endfor %}</div>
</header>

{% for part in parts %}
<section id="part-{{ loop.index }}">
<h2>{{ part.benchmark }}</h2>
{% for notice in part.notices %}<div class="notice{{ ' good' if notice.good }}">{{ notice.text }}
{%- for field in notice.fields %} <code>{{ field }}</code>{{ ',' if not loop.last }}{% endfor %}
</div>
{% endfor %}
<div class="scroll"><table>
<thead><tr><th>Score</th>
{% for run in part.runs %}<th class="run-head">{{ key(run) }}{{ run.short }}</th>{% endfor %}
{% for run in part.against %}<th class="run-head">{{ run.letter }} − {{ part.runs[0].letter }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}
<tr><td>{{ row.name }}
{%- if row.lower %} <span class="muted">lower is better</span>{% endif %}</td>
{% for cell in row.cells %}<td class="number{{ ' absent' if cell.value == '–' }}">{{ cell.value }}
{%- if cell.range %}<span class="range">{{ cell.range }}</span>{% endif %}</td>
{% endfor %}
{% for cell in row.gaps %}<td class="number">{{ cell.value }}
{%- if cell.mark %} <span class="badge {{ cell.style }}">{{ cell.mark }}</span>{% endif %}
{%- if cell.range %}<span class="range">{{ cell.range }}</span>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="muted">Below a score: its {{ level }} interval, by {{ resamples }} resamples of
{{ part.units }} units. Scores without one are of the whole set.
{%- if part.against %} A difference is marked where its interval, over the same units of both,
excludes 0.{% endif %} One of no width says only that no unit came out otherwise.</p>

{% if part.paper %}
<h3>Beside the paper's, on {{ part.paper.about }}</h3>
<div class="scroll"><table>
<thead><tr><th>System</th>
{% for name in part.paper.names %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.paper.ours %}<tr{% if loop.last %} class="ours"{% endif %}><td>{{ key(row.run) }}
{{- row.run.short }}</td>{% for value in row.found %}<td class="number">{{ value }}</td>
{% endfor %}</tr>
{% endfor %}
{% for row in part.paper.theirs %}<tr><td class="paper">{{ row.name }}</td>
{% for value in row.found %}<td class="paper">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if part.paper.note %}<p class="muted">{{ part.paper.note }}</p>{% endif %}
{% endif %}

{% if part.bars %}
<h3>By category</h3>
<div class="chart">
{% for bar in part.bars %}
<span>{{ bar.name }}</span>
<div class="tracks">{% for line in bar.lines %}<div class="track"><div class="fill" style="width:
{{- line.width }}%;background:{{ line.color }}"></div>
{% if line.range %}<div class="whisker" style="left:{{ line.range[0] }}%;width:
{{- line.range[1] }}%"></div>{% endif %}
{% if bar.paper is not none %}<div class="tick" style="left:{{ bar.paper }}%"></div>{% endif %}
</div>{% endfor %}</div>
<div class="values">{% for line in bar.lines %}<span>{{ line.text }}</span>{% endfor %}</div>
{% endfor %}
</div>
<p class="muted">From {{ part.bar_range[0] }} to {{ part.bar_range[1] }}; the fine line is the
interval{% if part.bars_have_paper %}, the dark tick {{ part.bars_have_paper }} of the paper
{%- endif %}.</p>
{% endif %}

{% if part.pictures %}
<h3>Pictures</h3>
<p class="muted">{{ part.pictures_legend }}</p>
<div class="gallery">
{% for picture in part.pictures %}
<div>{% if picture.said %}<p class="said">{{ picture.said }}</p>{% endif %}
<div class="row{{ ' alone' if picture.columns == 1 }}"
 style="grid-template-columns:repeat({{ picture.columns }}, 1fr)">
{% for cell in picture.cells %}<figure>{{ key(cell.run) }}{% if cell.src %}
<img{% if cell.pixel %} class="pixel"{% endif %} src="{{ cell.src }}" alt="{{ cell.alt }}">
{% else %}<span class="muted">{{ cell.note }}</span>{% endif %}</figure>
{% endfor %}</div></div>
{% endfor %}
</div>
{% endif %}

<h3>Protocol</h3>
{% if part.protocol.differing %}{{ cards(part.protocol.differing, part.runs) }}{% endif %}
<details><summary>{{ part.protocol.same|length }} fields that are the same</summary>
{{ cards(part.protocol.same, part.runs) }}</details>
<details><summary>Models, machines and versions</summary>
{{ cards(part.others, part.runs) }}</details>
</section>
{% endfor %}

{% if curves %}
<section id="curves">
<h2>Training</h2>
<img class="plot" src="{{ curves }}" alt="loss curves of each run">
</section>
{% endif %}
</main>
</body>
</html>
"""
