"""The metrics by which an int8 file is compared with its float network."""

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.evaluation import Accuracy, ConfusionMatrix
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader

from mmorepa.deploy.quantization.evaluation import TestSet, main_metric


class Model(torch.nn.Module):
    def test_step(self, labels):
        scores = torch.tensor([0.9, 0.1])
        return [DataSample().set_gt_label(int(i)).set_pred_score(scores) for i in labels]


def test_a_metric_of_several_numbers():
    tests = TestSet.__new__(TestSet)
    tests.loader = DataLoader([0, 1])
    tests.evaluator = Evaluator([ConfusionMatrix(), Accuracy()])
    metrics = tests.evaluate(Model())
    assert metrics == {
        'confusion_matrix/result': [[1.0, 0.0], [1.0, 0.0]],
        'accuracy/top1': 50.0,
    }


@pytest.mark.parametrize(
    'metrics, name',
    [
        (dict(aAcc=1.0, mIoU=1.0), 'mIoU'),
        (dict(recall=[1.0, 2.0], precision=1.0, top5=1.0), 'precision'),
        (dict(mIoU=[1.0]), None),
    ],
    ids=str,
)
def test_what_is_compared(metrics, name):
    assert main_metric(metrics) == name
