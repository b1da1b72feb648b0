"""`elma demo` behind its verb: the passages, the three processes, the run and its check."""
