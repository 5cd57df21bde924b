"""Benchmarks: one script per question, each with its method, its peer and its bar.

They answer "how fast, compared with what, measured how" and nothing else: no test depends on a figure from here, and
nothing in `logd` or `wire` imports this package. Every script runs alone (`python -m bench.disk_round`).
"""
