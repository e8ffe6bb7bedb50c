"""The laboratory: measuring the method and explaining it. Nothing outside of it imports it."""
