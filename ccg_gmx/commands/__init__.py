"""Groups of commands; ``cli.py`` puts them together. Heavy imports stay inside the commands."""
