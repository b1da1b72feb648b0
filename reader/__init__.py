"""The reader: an early-exit ALBERT for extractive question answering.

In: a question and a passage. Out: answer spans at every exit, and the state from which another
machine can go on. Neighbours: `edge_agent` and `cloud_worker` run it; it imports neither of them.
"""
