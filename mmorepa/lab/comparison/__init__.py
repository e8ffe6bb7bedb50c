"""Training several configs with several seeds, and what their results say together."""
