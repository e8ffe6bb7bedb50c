"""Backbones: thin subclasses of each library's own networks, and a RepVGG for all of them.

Import ``mmorepa.pretrain``, ``mmorepa.det`` or ``mmorepa.seg`` to register them.
"""
