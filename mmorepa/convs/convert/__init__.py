"""From convolutions to blocks, and from blocks to convolutions."""
