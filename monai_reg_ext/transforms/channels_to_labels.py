# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type

__all__ = ["ChannelsToLabels", "ChannelsToLabelsD", "ChannelsToLabelsDict", "ChannelsToLabelsd"]


class ChannelsToLabels(Transform):
    """A network's channels become a label map: at each voxel the class of the largest one.

    :py:class:`LabelsToChannels` is the way back.

    Args:
        labels: the classes in the order of the channels.

    Shape:
        - channels: ``(L, I, J, K)``, any floating dtype.
        - output: ``(1, I, J, K)`` int32, meta kept.

    Raises:
        ValueError: when there is not one channel per class.
    """

    def __init__(self, labels: Sequence[int]) -> None:
        self.labels = tuple(labels)

    def __call__(self, channels: torch.Tensor) -> torch.Tensor:
        if channels.shape[0] != len(self.labels):
            raise ValueError(
                f"a network gave {channels.shape[0]} channels for {len(self.labels)} labels {list(self.labels)}. Name "
                "one label per channel."
            )
        largest = channels.as_subclass(torch.Tensor).argmax(0, keepdim=True)
        labels = torch.tensor(self.labels, dtype=torch.int32, device=largest.device)
        return convert_to_dst_type(labels[largest], channels, dtype=torch.int32)[0]


class ChannelsToLabelsd(MapTransform):
    """Dictionary version of :py:class:`ChannelsToLabels`.

    Args:
        keys: what a network gave.
        labels: see :py:class:`ChannelsToLabels`.
        allow_missing_keys: whether keys may be absent.
    """

    def __init__(self, keys: KeysCollection, labels: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = ChannelsToLabels(labels)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.converter(out[key])
        return out


ChannelsToLabelsD = ChannelsToLabelsDict = ChannelsToLabelsd
