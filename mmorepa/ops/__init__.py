"""The operators of mmcv that detectors and segmentors call, out of torchvision's and torch's own.

mmcv-lite has all of ``mmcv.ops`` but the compiled module ``mmcv._ext``. ``extension`` stands in its
place, on any torch and without a compiler: for a process (``provide``, which ``mmorepa.det`` and
``mmorepa.seg`` call), or for an environment (``python -m mmorepa.ops install``). Where a compiled
module is there, nothing is touched. docs/operators.md has the table of operators.
"""

from .place import install, provide, state, uninstall

__all__ = ['install', 'provide', 'state', 'uninstall']
