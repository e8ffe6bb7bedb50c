"""What the writers of all formats can be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

#: The operator set of ONNX by default. It is the newest that torch 2.5 writes without a warning
#: and old enough for the runtimes in use.
OPSET = 17
#: Under this name the files of torch keep the metadata, as JSON.
METADATA = 'metadata.json'


@dataclass(frozen=True)
class FormatOptions:
    """How to write a file.

    Attributes:
        dynamic (bool): Whether batch, height and width stay open.
        opset (int): The operator set of ONNX.
        metadata (Mapping[str, str]): What is kept in the file if the format has a place for it.
    """

    dynamic: bool = True
    opset: int = OPSET
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def extra_files(self) -> dict[str, str]:
        """The metadata as torch takes it."""
        return {METADATA: json.dumps(dict(self.metadata))}
