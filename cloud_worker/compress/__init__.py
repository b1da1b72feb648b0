"""Compression: a model folder in, a smaller or faster one out, with a report of what was done."""
