# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ImageMetaKey, convert_to_dst_type

__all__ = ["LabelsToChannels", "LabelsToChannelsD", "LabelsToChannelsDict", "LabelsToChannelsd"]

LOGGER = logging.getLogger(__name__)


class LabelsToChannels(Transform):
    """The classes of a label map become the numbers of a network's channels, 0, 1, 2, ...

    :py:class:`ChannelsToLabels` is the way back.

    Args:
        labels: the classes in the order of the channels, background first.
        ignored: classes that count as background, because a network shall not learn them.
        warn: say so when a label map has no voxel of one of the classes.

    Shape:
        - label: whole numbers of any shape and dtype.
        - output: as the input; int32, meta kept.

    Raises:
        ValueError: when ``labels`` is empty, names a class twice, or one that is ignored; when a label map has values
            that are not whole, or a class that is named nowhere.
    """

    def __init__(self, labels: Sequence[int], ignored: Sequence[int] = (), warn: bool = False) -> None:
        self.labels = tuple(labels)
        self.warn = warn
        if not self.labels or len(set(self.labels)) < len(self.labels) or set(self.labels[1:]) & set(ignored):
            raise ValueError(
                f"labels must name each class once, background first, and none that is ignored; got {list(labels)}, "
                f"ignored {list(ignored)}."
            )
        self.channels = dict.fromkeys(ignored, 0) | {label: channel for channel, label in enumerate(self.labels)}

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        # label maps are runs of equal voxels: far fewer of them have to be looked up
        values, run = label.as_subclass(torch.Tensor).flatten().unique_consecutive(return_inverse=True)
        values, value_of_run = values.unique(return_inverse=True)
        classes = self._checked(values, label)
        channels = torch.tensor([self.channels[c] for c in classes], dtype=torch.int32, device=run.device)
        return convert_to_dst_type(channels[value_of_run][run].view(label.shape), label, dtype=torch.int32)[0]

    def _checked(self, values: torch.Tensor, label: torch.Tensor) -> list[int]:
        """The different values of a label map as classes."""
        classes = values.to(torch.int64)
        if (wrong := values[classes != values]).numel():
            raise ValueError(
                f"{_name(label)} needs whole numbers, it has others, e.g. {wrong[0].item():g}. Was it resampled "
                "linearly, or is it an intensity image?"
            )
        if unknown := sorted(set(classes.tolist()) - self.channels.keys()):
            raise ValueError(
                f"{_name(label)} holds the classes {unknown}, the network has channels for {list(self.labels)}. Name "
                "them among the labels, name those it shall not learn as ignored, or give the label map that belongs "
                "to the network."
            )
        if self.warn and (absent := sorted(set(self.labels[1:]) - set(classes.tolist()))):
            LOGGER.warning("%s has no voxel of the classes %s: nothing to learn there.", _name(label), absent)
        return classes.tolist()


class LabelsToChannelsd(MapTransform):
    """Dictionary version of :py:class:`LabelsToChannels`.

    Args:
        keys: label maps.
        labels, ignored, warn: see :py:class:`LabelsToChannels`.
        allow_missing_keys: whether label maps may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Sequence[int],
        ignored: Sequence[int] = (),
        warn: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = LabelsToChannels(labels, ignored, warn)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.converter(out[key])
        return out


def _name(label: torch.Tensor) -> str:
    name = label.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "") if isinstance(label, MetaTensor) else ""
    return f"label map {name}" if name else "a label map"


LabelsToChannelsD = LabelsToChannelsDict = LabelsToChannelsd
