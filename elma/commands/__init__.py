"""One verb a file.

A group of verbs (broker, keys, edge, worker) is a `typer.Typer` called `app`; a single verb (ask,
demo, evaluate, calibrate, train, convert) is a function `register(app)`. Heavy imports, torch first
of all, belong inside the functions, so that `elma --help` answers at once.
"""
