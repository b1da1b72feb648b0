"""What crosses the wire between a device and the worker pool.

Topics (`topics`), messages and their bytes (`messages`, `wire`), keys (`keys`), sealing
(`sealing`), repeated requests (`duplicates`) and every way they can fail (`errors`).
Imports nothing of ELMA's other packages.
"""
