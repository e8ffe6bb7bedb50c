"""Options that make a detection or segmentation config small enough for a test."""

from mmorepa.datasets.digits import DIGITS_CLASSES

#: Side of the digits' canvases in pixels.
SIZE = 96


def narrow(cfg):
    """Options that make a network narrow; the code it runs is the same."""
    options = {'model.backbone.base_channels': 4, 'model.backbone.stem_channels': 4}
    expansion = 1 if cfg.model.backbone.depth < 50 else 4
    widths = [4 * expansion * 2**stage for stage in range(4)]
    if 'neck' in cfg.model:
        options |= {'model.neck.in_channels': widths, 'model.neck.out_channels': 8}
    for head in ('bbox_head', 'rpn_head'):
        if head in cfg.model:
            options |= {f'model.{head}.in_channels': 8, f'model.{head}.feat_channels': 8}
    if 'bbox_head' in cfg.model:
        options['model.bbox_head.num_classes'] = 10
    if 'roi_head' in cfg.model:
        options['model.roi_head.bbox_roi_extractor.out_channels'] = 8
        heads = cfg.model.roi_head.bbox_head
        names = [f'bbox_head.{i}' for i in range(len(heads))] if isinstance(heads, list) else None
        for name in names or ['bbox_head']:
            options |= {
                f'model.roi_head.{name}.in_channels': 8,
                f'model.roi_head.{name}.fc_out_channels': 16,
                f'model.roi_head.{name}.num_classes': 10,
            }
        if 'mask_head' in cfg.model.roi_head:
            options |= {
                'model.roi_head.mask_roi_extractor.out_channels': 8,
                'model.roi_head.mask_head.in_channels': 8,
                'model.roi_head.mask_head.conv_out_channels': 8,
                'model.roi_head.mask_head.num_classes': 10,
            }
    if 'decode_head' in cfg.model:
        options |= {
            'model.decode_head.in_channels': widths[3],
            'model.decode_head.channels': 8,
            'model.auxiliary_head.in_channels': widths[2],
            'model.auxiliary_head.channels': 8,
        }
        if 'c1_in_channels' in cfg.model.decode_head:
            options |= {
                'model.decode_head.c1_in_channels': widths[0],
                'model.decode_head.c1_channels': 4,
            }
    return options


def on_digits(cfg, folder):
    """Options that point a config to the digits, at their size, for one iteration."""
    options = {
        'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=1, val_interval=1),
        'train_dataloader.batch_size': 2,
        'default_hooks.checkpoint': dict(type='CheckpointHook', interval=1, by_epoch=False),
    }
    coco = cfg.default_scope == 'mmdet'
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        options |= {
            f'{loader}.num_workers': 0,
            f'{loader}.persistent_workers': False,
            f'{loader}.dataset.data_root': str(folder / ('coco' if coco else 'cityscapes')),
        }
        if coco:
            options[f'{loader}.dataset.metainfo'] = dict(classes=DIGITS_CLASSES)
        for i, step in enumerate(cfg[loader].dataset.pipeline):
            key = f'{loader}.dataset.pipeline.{i}'
            if 'Resize' in step.type:
                options[f'{key}.scale'] = (SIZE, SIZE)
            if step.type == 'RandomCrop':
                options[f'{key}.crop_size'] = (64, 64)
    if coco:
        # One step teaches nothing: let every box through, or there is nothing to evaluate.
        threshold = 'rcnn.score_thr' if 'roi_head' in cfg.model else 'score_thr'
        options[f'model.test_cfg.{threshold}'] = 0
        for evaluator in ('val_evaluator', 'test_evaluator'):
            path = folder / 'coco' / 'annotations' / 'instances_val2017.json'
            options[f'{evaluator}.ann_file'] = str(path)
    else:
        options['model.data_preprocessor.size'] = (64, 64)
        if cfg.model.test_cfg.mode == 'slide':
            options |= {
                'model.test_cfg.crop_size': (64, 64),
                'model.test_cfg.stride': (48, 48),
            }
    return options
