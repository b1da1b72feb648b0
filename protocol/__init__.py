"""What crosses the wire: between a device and the worker pool, and from the publisher to both.

Topics (`topics`), messages and their bytes (`messages`, `requests`, `wire`), keys (`keys`), sealing
(`sealing`), repeated requests (`duplicates`); releases: signatures (`signing`), what a release is
(`manifest`, `release_files`, `blobs`, `file_index`), who takes it and who runs it
(`release_messages`); key files (`key_files`), and every way they can fail (`errors`).
Imports nothing of ELMA's other packages.
"""
