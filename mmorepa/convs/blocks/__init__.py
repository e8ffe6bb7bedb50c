"""The blocks that OREPA is compared with, and what all blocks have in common."""
