"""Releases on their way to those who run them: contents, deltas, fetching, verifying, installing.

What both receiving ends share, device and worker; the sending end is `publisher`. The way of a
release: `follower` hears of it, `trust` checks it, `planning` says what lacks, `fetching` brings
it, `assembly` makes a model folder of it, `store` keeps it.
"""
