"""What `elma doctor` looks at: a function for each thing, and a `Finding` from each function."""
