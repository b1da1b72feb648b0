"""The command line of ELMA: one verb a file under `elma.commands`, put together in `elma.cli`."""

__version__ = "0.1.0"
