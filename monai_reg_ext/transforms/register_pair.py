# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import ImageMetaKey, MetaKeys, TraceKeys, convert_to_tensor, ensure_tuple_rep
from torch.utils.data import get_worker_info

from monai_reg_ext.transforms.load_pair import LoadPaird
from monai_reg_ext.transforms.registration_recipe import PARTS, RegistrationRecipe, read_bundle_config
from monai_reg_ext.transforms.spatial_displacement import FoldedFieldError, SpatialDisplacement

__all__ = ["RegisterPairD", "RegisterPairDict", "RegisterPaird"]

LOGGER = logging.getLogger(__name__)
MODES = ("bilinear", "nearest", "label")


class RegisterPaird(MapTransform, InvertibleTransform):
    """Register a pair and bring everything of the moving side onto the fixed grid, and back by ``inverse``.

    Fixed and moving image are MetaTensors ``(1, I, J, K)`` on grids of their own. Masks ``<image key>_mask`` and label
    maps ``<image key>_label`` on their grids serve the registration where they are present and the method uses them;
    they stay as they are unless ``keys`` name them. Each key is interpolated once, from its original voxels, and
    gets the fixed image's place in space (also ``original_affine`` and ``spatial_shape``, to which ``SaveImaged`` can
    resample) with its own file name.

    ``inverse`` takes what lies on the fixed grid under a key, the registered volume itself or a result computed from
    it such as a segmentation, to the grid that the key had before, with the key's mode and meta data. It
    interpolates, hence what the fixed grid does not show or blurs does not come back. MONAI's trace carries the
    field, so that it also works in a ``Compose``, in ``Invertd`` and after ``decollate_batch``.

    Args:
        keys: what moves; the first one is the moving image, the others are in its space, on any grids.
        fixed_key: image to whose grid they are brought.
        method: name of a bundle that comes with the package, folder of a bundle, or a :py:class:`RegistrationRecipe`
            (or anything else with its parts ``preparation``, ``network`` and ``completion``). A bundle is built when it
            is first needed, once per process.
        mode: per key ``"bilinear"``, ``"nearest"`` or ``"label"``, see :py:meth:`SpatialDisplacement.warp`; ``None`` is
            ``"bilinear"`` for the image and ``"nearest"`` for all others.
        ddf_key: where the total field goes, a MetaTensor ``(3, I, J, K)`` float32 with the fixed affine, in voxels of
            the fixed grid; ``None`` for nowhere.
        device: where the network works. ``None`` is what the bundle says, as a rule a GPU where there is one, but the
            CPU in workers of a ``DataLoader``. Results are where the images were.
        settings: config files of the bundle merged into its ``inference.json``, e.g. ``"same_modality"``.
        allow_folding: whether ``inverse`` may invert a field that folds as well as can be, with a warning.
        allow_missing_keys: whether all keys but the image may be absent.
        uncertainty_key: where the standard deviation of the displacement goes, a MetaTensor ``(1, I, J, K)`` float32 in
            mm, of a method that tells it: a bundle with ``uncertainty=True``. ``None`` for nowhere.
        overrides: ids of the bundle's config and their values, e.g. ``initial="affine"`` or
            ``**{"network_def#passes": 2}``.

    Raises:
        KeyError: when an item lacks a key.
        TypeError: for volumes that are no MetaTensors, and hence have no place in space; for a method that is none.
        FileNotFoundError: for an unknown bundle, with the names that exist.
        ValueError: for an unknown mode or config id; for a pair that :py:class:`CheckPaird` refuses; in ``inverse``
            when a volume is not on the fixed grid, and without ``allow_folding`` when the field folds; for an
            ``uncertainty_key`` when the method tells no uncertainty.
    """

    def __init__(
        self,
        keys: KeysCollection = ("moving",),
        fixed_key: str = "fixed",
        method: str | Path | RegistrationRecipe | Any = "convex_adam",
        mode: str | Sequence[str] | None = None,
        ddf_key: str | None = "ddf",
        device: torch.device | str | None = None,
        settings: Sequence[str | Path] | str | Path = (),
        allow_folding: bool = True,
        allow_missing_keys: bool = False,
        uncertainty_key: str | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if fixed_key in self.keys:
            raise ValueError(f"{fixed_key!r} is the fixed image and does not move. Leave it out of the keys.")
        self.fixed_key = fixed_key
        self.modes = _modes(mode, len(self.keys))
        self.ddf_key = ddf_key
        self.uncertainty_key = uncertainty_key
        self.device = device
        self.allow_folding = allow_folding
        self._config: dict[str, Any] | None = None
        self._recipe: RegistrationRecipe | None = None
        if isinstance(method, (str, Path)):
            self._config = read_bundle_config(method, settings, **overrides)
        elif settings or overrides:
            given = ", ".join([*overrides, *(["settings"] if settings else [])])
            raise ValueError(f"{given}: only a bundle has a config to change. Change the recipe itself.")
        else:
            self._recipe = _as_recipe(method, device)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was built from a bundle: another process builds its own, on a device of its own."""
        state = super().__getstate__()
        return state if self._config is None else state | {"_recipe": None}

    @property
    def recipe(self) -> RegistrationRecipe:
        """The method's parts; a bundle is built now."""
        if self._recipe is None:
            # a forked process cannot start CUDA
            device = "cpu" if self.device is None and get_worker_info() is not None else self.device
            self._recipe = RegistrationRecipe.from_config(self._config, device)
        return self._recipe

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        self._check(out)
        fixed = out[self.fixed_key]
        result = self.recipe(self._pair(out))
        field, backward = SpatialDisplacement(result["pred"], fixed.affine), result.get("pred_inverse")
        backward = None if backward is None else SpatialDisplacement.from_metatensor(backward)
        for key, mode in self.key_iterator(out, self.modes):
            out[key] = self._register(out[key], fixed, mode=mode, field=field, backward=backward)
        if self.ddf_key is not None:
            out[self.ddf_key] = MetaTensor(field.ddf, meta=_meta_on_fixed(fixed, fixed))
        if self.uncertainty_key is not None:
            out[self.uncertainty_key] = MetaTensor(_uncertainty(result), meta=_meta_on_fixed(fixed, fixed))
        return out

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """What lies on the fixed grid under the registered keys, on the grids that these keys had before."""
        out = dict(data)
        backward: dict[Hashable, SpatialDisplacement] = {}  # keys of one grid share one inversion
        for key in self.key_iterator(out):
            traced = self.get_most_recent_transform(out, key)
            size, extra = tuple(traced[TraceKeys.ORIG_SIZE]), traced[TraceKeys.EXTRA_INFO]
            affine = extra["meta"][MetaKeys.AFFINE]
            grid = (id(extra["field"]), size, *affine.flatten().tolist())
            if grid not in backward:
                backward[grid] = self._backward(extra["field"], extra["backward"], affine, size)
            out[key] = _return(key, out[key], backward[grid], traced)
        return out

    def _check(self, data: Mapping[Hashable, Any]) -> None:
        for key in (self.fixed_key, self.keys[0]):
            if key not in data:
                raise KeyError(f"RegisterPaird needs the image {key!r}, the item has {sorted(map(str, data))}.")
        for key in (self.fixed_key, *self.key_iterator(data)):
            if not isinstance(data[key], MetaTensor):
                raise TypeError(
                    f"{key} must be a MetaTensor, because a registration depends on its place in space; got "
                    f"{type(data[key]).__name__}. Load it with LoadImaged, or MetaTensor(values, affine=affine)."
                )

    def _pair(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item under the names that recipes know."""
        pair = {"pair": data.get("pair")}
        for side, image in (("fixed", self.fixed_key), ("moving", self.keys[0])):
            pair |= {side: data[image], f"{side}_mask": data.get(f"{image}_mask")}
            label = data.get(f"{image}_label")
            # on another grid it is a passenger, which no method can compare
            pair[f"{side}_label"] = label if getattr(label, "shape", None) == data[image].shape else None
        return LoadPaird()(pair)

    def _register(self, volume: MetaTensor, fixed: MetaTensor, **extra: Any) -> MetaTensor:
        values = extra["field"].warp(volume, extra["mode"]).as_tensor().to(volume.device)
        registered = MetaTensor(
            values, meta=_meta_on_fixed(volume, fixed), applied_operations=list(volume.applied_operations)
        )
        extra_info = extra | {"meta": dict(volume.meta)}
        return self.push_transform(registered, orig_size=tuple(volume.shape[1:]), extra_info=extra_info)

    def _backward(
        self, field: SpatialDisplacement, known: SpatialDisplacement | None, affine: torch.Tensor, size: tuple[int, ...]
    ) -> SpatialDisplacement:
        if known is not None:
            return known.resample(affine, size)
        try:
            return field.inverse(affine, size)[0]
        except FoldedFieldError as error:
            if not self.allow_folding:
                raise
            backward, residual = field.inverse(affine, size, allow_folding=True)
            LOGGER.warning("approximate inverse, mean residual %.3g voxels: %s", residual, error)
            return backward


def _uncertainty(result: Mapping[Hashable, Any]) -> torch.Tensor:
    if "uncertainty" not in result:
        raise ValueError(
            "uncertainty_key is given, but the method tells none. Give a bundle that knows it uncertainty=True, "
            "or leave the key away."
        )
    return convert_to_tensor(result["uncertainty"], track_meta=False)


def _return(key: Hashable, volume: MetaTensor, backward: SpatialDisplacement, traced: dict[str, Any]) -> MetaTensor:
    """Volume on the fixed grid, whatever its own affine says, brought to the grid of ``backward``."""
    extra = traced[TraceKeys.EXTRA_INFO]
    if tuple(volume.shape[1:]) != extra["field"].size:
        raise ValueError(
            f"{key} has {tuple(volume.shape[1:])} voxels, but was registered onto {extra['field'].size}. First "
            "undo what was done to it since."
        )
    on_fixed = MetaTensor(volume.as_tensor(), affine=extra["field"].affine)
    values = backward.warp(on_fixed, extra["mode"]).as_tensor().to(volume.device)
    earlier = [operation for operation in volume.applied_operations if operation is not traced]
    return MetaTensor(values, meta=dict(extra["meta"]), applied_operations=earlier)


def _meta_on_fixed(volume: MetaTensor, fixed: MetaTensor) -> dict[str, Any]:
    """Only what is true of a volume brought to the fixed grid: other header fields would contradict its affine."""
    geometry = (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPATIAL_SHAPE)
    name = volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")
    return {ImageMetaKey.FILENAME_OR_OBJ: name} | {key: fixed.meta[key] for key in geometry if key in fixed.meta}


def _modes(mode: str | Sequence[str] | None, keys: int) -> tuple[str, ...]:
    modes = ("bilinear", *["nearest"] * (keys - 1)) if mode is None else ensure_tuple_rep(mode, keys)
    wrong = [mode for mode in modes if mode not in MODES]
    if wrong:
        raise ValueError(f"mode must be one of {MODES} for every key, got {wrong[0]!r}.")
    return modes


def _as_recipe(method: Any, device: torch.device | str | None) -> RegistrationRecipe:
    absent = [part for part in PARTS if not hasattr(method, part)]
    if absent:
        raise TypeError(
            f"method must be a bundle's name or folder, or a recipe with {', '.join(PARTS)}; {type(method).__name__} "
            f"lacks {', '.join(absent)}."
        )
    device = getattr(method, "device", None) if device is None else device
    network = method.network if device is None else method.network.to(device)
    return RegistrationRecipe(method.preparation, network, method.completion, device)


RegisterPairD = RegisterPairDict = RegisterPaird
