"""Backbones: thin subclasses of each library's own classes.

Import ``mmorepa.pretrain``, ``mmorepa.det`` or ``mmorepa.seg`` to register them.
"""
