"""The stages of the cycle, each a function from finished stages to a new folder."""
