"""Runs that are compared, their results and tables, stage 0 and benchmarks."""
