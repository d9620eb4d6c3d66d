"""The cycle: settings, stages, store and the loop."""
