"""Backbones: thin subclasses of each library's own classes.

Import ``mmorepa.pretrain`` to register them; this package imports no OpenMMLab package.
"""
