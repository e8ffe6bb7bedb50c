"""What the numbers inside a network say: measurements, tables, plots."""
