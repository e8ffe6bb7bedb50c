"""The real Runner on the smallest training that has everything: two epochs of two batches."""

import itertools
import math
import multiprocessing
import os
import socket
from datetime import timedelta

import torch
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

import mmorepa.pretrain  # noqa: F401
from mmorepa.errors import UserError

CLASSES, IMAGES, BATCH, SIZE = 3, 8, 4, 32


class Images(torch.utils.data.Dataset):
    """Random images with labels; those named are not finite."""

    def __init__(self, faulty=()):
        self.faulty = faulty

    def __len__(self):
        return IMAGES

    def __getitem__(self, i):
        image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i))
        if i in self.faulty:
            image[1, 2, 3] = math.nan
        sample = DataSample().set_gt_label(i % CLASSES)
        sample.set_metainfo(dict(img_path=f'images/{i}.png'))
        return dict(inputs=image, data_samples=sample)


BACKBONE = dict(
    type='mmpretrain.OREPAResNet',
    depth=18,
    base_channels=4,
    stem_channels=4,
    strides=(1, 2, 2, 1),
    norm_eval=False,
)
CHECKPOINT = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
#: MMEngine shares message hubs between Runners of one name that begin in one second.
_numbers = itertools.count()


def make_runner(work_dir, dataset=None, lr=0.01, hooks=(), optim=None, backbone=None, **kwargs):
    """The real Runner over two epochs of two batches, quietly."""
    classifier = dict(
        type='mmpretrain.ImageClassifier',
        backbone={**BACKBONE, **(backbone or {})},
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=CLASSES, in_channels=32),
        data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', num_classes=CLASSES),
    )
    defaults = dict(checkpoint=CHECKPOINT, non_finite=dict(type='NonFiniteHook'))
    return Runner(
        model=kwargs.pop('model', classifier),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dataset or Images(),
            batch_size=BATCH,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            num_workers=0,
        ),
        optim_wrapper={'optimizer': dict(type='SGD', lr=lr), **(optim or {})},
        train_cfg=kwargs.pop('train_cfg', dict(by_epoch=True, max_epochs=2)),
        default_hooks={**defaults, **kwargs.pop('default_hooks', {})},
        custom_hooks=list(hooks),
        log_level='ERROR',
        experiment_name=f'small_training_{next(_numbers)}',
        randomness=dict(seed=0),
        default_scope='mmpretrain',
        **kwargs,
    )


def line_of_two(folder):
    """What one of two processes that train says of its faulty image; the other is ended.

    As a launcher does it. To be called where processes may be forked.
    """
    context = multiprocessing.get_context('fork')
    lines = context.Queue()
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_train_one_of_two, args=(rank, folder, port, lines))
        for rank in range(2)
    ]
    try:
        for process in processes:
            process.start()
        return lines.get(timeout=100)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _train_one_of_two(rank, folder, port, lines):
    """One process of a distributed training, whose second process gets a faulty image."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE='2',
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=60))
    runner = make_runner(
        folder,
        # Every other image goes to each process.
        Images(faulty=(1,)),
        cfg=dict(
            model_wrapper_cfg=dict(type='CPUDistributedDataParallel', broadcast_buffers=False)
        ),
    )
    try:
        runner.train()
    except UserError as error:
        lines.put(str(error))
        lines.close()
        lines.join_thread()
        os._exit(2)
