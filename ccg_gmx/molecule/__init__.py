"""A molecule: its parameters, its energy, its internal coordinates."""
