"""The version of mmorepa."""

__version__ = '0.1.0'
