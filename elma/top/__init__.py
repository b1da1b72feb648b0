"""`elma top`: edges and workers looked at while they work, in the terminal."""
