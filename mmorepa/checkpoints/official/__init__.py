"""Checkpoints of the released code, JUGGHM/OREPA_CVPR2022."""
