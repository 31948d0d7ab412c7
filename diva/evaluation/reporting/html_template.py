"""The page of diva.evaluation.reporting.html, for jinja2 with autoescape: every value is escaped."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{{ values.system }} on {{ task.full_name }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #8885; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { width: 50rem; max-width: 100%; }
article { border: 1px solid #8885; border-radius: .5rem; padding: .7rem 1rem; margin: 1rem 0; }
article h3 { margin: 0; font-size: 1.05rem; }
article table { width: 100%; margin: .5rem 0 0; display: table; }
article td { text-align: left; vertical-align: top; }
article td:nth-child(1) { width: 12rem; }
article td:nth-child(2) { white-space: pre-wrap; overflow-wrap: anywhere; }
article td:nth-child(3) { width: 4rem; }
@media (max-width: 40rem) { article tr { display: block; margin-top: .5rem; } article td { display: block; width: auto;
 border: 0; padding: 0; } }
audio { width: 100%; max-width: 26rem; height: 2.2rem; margin: .4rem 0; }
.quiet { opacity: .7; font-size: .9rem; overflow-wrap: anywhere; }
.right { color: #1a7f37; } .wrong { color: #cf222e; } .failed { color: #9a6700; }
.right, .wrong, .failed { font-weight: 600; }
</style>
</head>
<body>
<h1>{{ values.system }} on {{ task.full_name }}</h1>
{% if task.system_prompt %}
<p>System message: {{ task.system_prompt }}</p>
{% endif %}
{% if task.question %}
<p>Asked after the speech: {{ task.question }}</p>
{% endif %}
{% for table in tables %}
<table>
<thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endfor %}
{% for note in notes %}
<p class="quiet">{{ note }}</p>
{% endfor %}
<img alt="{{ drawn }} of each system" src="data:image/png;base64,{{ picture }}">
<h2>{{ samples | length }} of {{ total }} samples, evenly spread</h2>
{% if metric %}
<p class="quiet">Right or wrong by {{ metric }}.</p>
{% endif %}
{% for sample in samples %}
<article id="sample-{{ loop.index }}">
<h3>{{ sample.question or sample.id }}</h3>
{% if sample.audio %}
<audio controls preload="metadata" src="data:audio/mpeg;base64,{{ sample.audio }}"></audio>
{% else %}
<p class="quiet">No clip: {{ sample.silence }}</p>
{% endif %}
<div>Reference: <b class="reference">{{ sample.references | join(' / ') }}</b></div>
<table>
{% for said in sample.said %}
<tr><td>{{ said.system }}</td><td>{{ said.text }}</td>
<td class="{{ said.verdict if said.verdict in ('right', 'wrong', 'failed') }}">{{ said.verdict }}</td></tr>
{% endfor %}
</table>
<div class="quiet">{{ sample.id }}{% if sample.group %}, {{ sample.group }}{% endif %}</div>
</article>
{% endfor %}
<p class="quiet">Revision {{ values.revision }}, task {{ values.task_hash }}, data {{ values.data_hash }}.</p>
</body>
</html>
"""
