"""The method: the block, its branches, adding them up quickly, squeezed training."""
