"""What the tests of faults share that is no fixture."""

import multiprocessing
import os
import traceback

import torch
from mmengine.hooks import Hook

#: Images in a pass, and batches that they make.
IMAGES, BATCH = 12, 4
STEPS = IMAGES // BATCH
SIZE = 32

#: Options of a network of two stages, in which BatchNorms see values enough to be well behaved.
SHALLOW = {
    'model.backbone.num_stages': 2,
    'model.backbone.strides': (1, 2),
    'model.backbone.dilations': (1, 1),
    'model.backbone.out_indices': (1,),
    'model.head.in_channels': 8,
}

RELATIVE = 1e-4  # scores of two forms, float32


def load(path):
    """A checkpoint with all that MMEngine puts into it, written by the test itself."""
    return torch.load(path, weights_only=False)


#: What a resumed training has to have in common with one that was not stopped. Beside it there
#: are dates, the config, and logs with times in them.
PARTS = (
    'state_dict',
    'ema_state_dict',
    'optimizer',
    'param_schedulers',
    'accumulated_gradients',
)


def differing(first, second, parts=PARTS):
    """Names of everything in which two checkpoints differ by a single bit."""
    different = []

    def compare(a, b, name):
        if isinstance(a, torch.Tensor):
            same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        elif isinstance(a, (dict, list, tuple)):
            same = type(a) is type(b) and len(a) == len(b)
            if same:
                pairs = a.items() if isinstance(a, dict) else enumerate(a)
                for key, value in pairs:
                    compare(value, b.get(key) if isinstance(b, dict) else b[key], f'{name}.{key}')
        else:
            same = a == b
        if not same:
            different.append(name)

    compare(*({part: c.get(part) for part in parts} for c in (first, second)), 'checkpoint')
    return different


def in_processes(target, *arguments, count=1):
    """Run ``target(rank, *arguments)`` in forked processes, so that nothing is imported again.

    Returns:
        list[int]: Their exit codes; minus the signal of one that was killed.
    """
    context = multiprocessing.get_context('fork')
    processes = [
        context.Process(target=_run, args=(target, rank, arguments)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _run(target, rank, arguments):
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    try:
        target(rank, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Scores(Hook):
    """Keeps the scores of every evaluation, all images of one in a tensor."""

    def __init__(self):
        self.evaluations = []

    def before_val_epoch(self, runner):
        self.evaluations.append([])

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.evaluations[-1] += [sample.pred_score for sample in outputs]

    def last(self):
        return torch.stack(self.evaluations[-1])
