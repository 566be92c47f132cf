"""Public image question benchmarks as tasks of lm-eval: data in YAML, rules in small functions.

A YAML file says version, prompt, limits and metrics. `docs` brings each benchmark's files into one
form, `answers` reads what a model wrote as its benchmark does, `judging` marks one question, and
`scores` makes the published numbers of many. Plain lm-eval reads the folder by --include_path.
"""

from pathlib import Path

TASKS = Path(__file__).resolve().parent
"""The folder of the YAML files."""
