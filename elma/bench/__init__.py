"""Measuring ELMA beside what a user would pick instead: one module a benchmark, one row a way."""
