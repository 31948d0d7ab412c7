"""Benchmarks: a task and a system in, samples.jsonl and results.json out. Start in `diva/evaluate.py`."""
