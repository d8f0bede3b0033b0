"""The data of the scripts beside it: 33 points in two classes, which 2 processes cannot split evenly."""

import torch
from torch.utils.data import DataLoader, TensorDataset

GENERATOR = torch.Generator().manual_seed(1)
POINTS = torch.randn(33, 4, generator=GENERATOR)
LABELS = (POINTS.sum(dim=1) > 0).long()


def loader(shuffle: bool = False) -> DataLoader:
    return DataLoader(TensorDataset(POINTS, LABELS), batch_size=4, shuffle=shuffle)
