"""Benchmarks: `headrace bench NAME` runs one, and fails if a figure it promises is missed."""
