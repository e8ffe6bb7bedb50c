"""The names of this package's configs, for the libraries' ``get_model`` and inferencers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmengine.infer import BaseInferencer

MIM = Path(__file__).parent / '.mim'
#: The folder of the configs of each library.
FOLDERS = {
    library: MIM / 'configs' / data
    for library, data in (('mmpretrain', 'imagenet'), ('mmdet', 'coco'), ('mmseg', 'cityscapes'))
}


def add_to_model_hub() -> None:
    """Make the names known to ``mmpretrain.get_model``, ``list_models`` and the inferencers.

    Weights that come with the package are known too, so that ``pretrained=True`` loads them.
    """
    from mmpretrain.apis.model import ModelHub

    digits = MIM / 'configs' / 'digits' / 'metafile.yml'
    for metafile in (*sorted(FOLDERS['mmpretrain'].rglob('metafile.yml')), digits):
        ModelHub.register_model_index(metafile, config_prefix=MIM)
    for model in ModelHub._models_dict.values():
        # The hub expands the paths of configs, but not those of weights.
        if model.weights and (MIM / model.weights).is_file():
            model.weights = str(MIM / model.weights)


def add_to_inferencers(library: str) -> None:
    """Make the names known to the inferencers of mmdet or mmseg.

    MMEngine reads names from the folder of one library and has no place for others. Its generator
    of the entries is therefore continued with those of this package, for that folder alone.

    Args:
        library (str): ``'mmdet'`` or ``'mmseg'``.
    """
    entries_of = BaseInferencer._get_models_from_metafile
    folder = BaseInferencer._get_repo_or_mim_dir(library)

    def with_ours(asked: str) -> Iterator[dict]:
        yield from entries_of(asked)
        if asked == folder:
            for path in sorted(FOLDERS[library].glob('*.py')):
                yield dict(Name=path.stem, Config=str(path), Weights=None)

    BaseInferencer._get_models_from_metafile = staticmethod(with_ours)
