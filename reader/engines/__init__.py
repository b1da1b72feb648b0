"""Engines: what multiplies the matrices of a reader, behind one interface (`engine.Engine`)."""
