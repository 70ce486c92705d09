# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import logging
import pickle
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CopyItemsd,
    EnsureTyped,
    Flipd,
    Invertd,
    Lambdad,
    LoadImaged,
    Orientationd,
    SaveImage,
    Spacingd,
)
from torch import nn

from monai_reg_ext.data import phantom_pair
from monai_reg_ext.metrics import compute_learn2reg_dice
from monai_reg_ext.transforms import (
    CheckPaird,
    DDFToFixedGridd,
    RegisterPaird,
    RegistrationRecipe,
    ResampleToFixedd,
    SpatialDisplacement,
    WarpPointsd,
    grid_voxels,
    mm_to_ddf,
    voxel_to_mm,
)

SMALL = {"network_def#estimator#half_width": 3, "network_def#refiner#iterations": 20}
SHIFT = (1, -2, 3)  # voxels of the fixed grid
SHIFT_MM = (2.5, -3.0, 4.0)
SLOPE = torch.tensor([3.0, -2.0, 1.5], dtype=torch.float64)  # of the ramp, per mm


class KnownDDF(nn.Module):
    """A network that has found the displacement already."""

    def __init__(self, ddf) -> None:
        super().__init__()
        self.ddf = torch.as_tensor(ddf, dtype=torch.float32)

    def forward(self, image):
        ddf = self.ddf if self.ddf.ndim == 4 else self.ddf.reshape(3, 1, 1, 1)
        return ddf.expand(3, *image.shape[2:])[None].clone()


class KnownShiftMM(nn.Module):
    """SHIFT_MM, found on a working grid with this affine."""

    def __init__(self, affine) -> None:
        super().__init__()
        self.shift = mm_to_ddf(torch.tensor(SHIFT_MM).reshape(3, 1, 1, 1), affine)

    def forward(self, image):
        return self.shift.to(image).expand(3, *image.shape[2:])[None].clone()


def recipe(network: nn.Module, completion=None) -> RegistrationRecipe:
    prepare = Compose(
        [ResampleToFixedd(initial="headers"), ConcatItemsd(("moving_working", "fixed_working"), name="image")]
    )
    return RegistrationRecipe(prepare, network, completion or DDFToFixedGridd())


def ramp(size, affine) -> MetaTensor:
    """Linear in physical space, so that linear interpolation is exact."""
    values = 500 + torch.tensordot(SLOPE, grid_voxels(size, affine, dtype=torch.float64), dims=1)
    return MetaTensor(values[None].float(), affine=affine, meta={"filename_or_obj": "ramp.mha"})


def ball(size, affine, centre_mm, radius_mm=9.0) -> MetaTensor:
    offset = grid_voxels(size, affine, dtype=torch.float64) - torch.as_tensor(centre_mm).reshape(3, 1, 1, 1)
    return MetaTensor((offset.norm(dim=0) < radius_mm)[None].to(torch.int32), affine=affine)


def dice(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = torch.as_tensor(first != 0), torch.as_tensor(second != 0)
    return (2 * (first & second).sum() / (first.sum() + second.sum())).item()


@pytest.fixture
def centre_mm(fixed_size, fixed_affine) -> torch.Tensor:
    """Centre of the fixed grid."""
    return voxel_to_mm((torch.tensor([fixed_size]) - 1) / 2, fixed_affine)[0]


@pytest.fixture
def item(fixed_size, fixed_affine, moving_size, moving_affine, centre_mm) -> dict[str, MetaTensor]:
    """Ramps on oblique grids of unequal size and spacing, and a ball in moving space."""
    return {
        "fixed": ramp(fixed_size, fixed_affine),
        "moving": ramp(moving_size, moving_affine),
        "moving_label": ball(moving_size, moving_affine, centre_mm + torch.tensor(SHIFT_MM)),
    }


@pytest.fixture
def in_mm(fixed_affine) -> RegistrationRecipe:
    return recipe(KnownShiftMM(fixed_affine))


@pytest.fixture
def cropped(fixed_size, fixed_affine):
    """A moving grid that is the fixed one with a margin, its axis 1 flipped: whole voxels fall on whole voxels."""
    margin = torch.tensor([2, 3, 4])
    size = tuple((torch.tensor(fixed_size) + 2 * margin).tolist())
    to_fixed = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    to_fixed[:3, 3] = torch.tensor([-2.0, fixed_size[1] - 1 + 3, -4.0])
    affine = fixed_affine @ to_fixed
    label = torch.randint(1, 100, (1, *size), dtype=torch.int32)
    return {
        "fixed": MetaTensor(torch.rand(1, *fixed_size), affine=fixed_affine),
        "moving": MetaTensor(torch.rand(1, *size), affine=affine),
        "moving_label": MetaTensor(label, affine=affine),
    }


def shown_by_fixed(volume: torch.Tensor, fixed_size) -> torch.Tensor:
    """What of a ``cropped`` moving volume stands on the fixed grid after SHIFT."""
    return volume.flip(2)[(slice(None), *where_shown(fixed_size))]


def where_shown(fixed_size) -> tuple[slice, ...]:
    start = (2 + SHIFT[0], 3 + SHIFT[1], 4 + SHIFT[2])
    return tuple(slice(first, first + extent) for first, extent in zip(start, fixed_size, strict=True))


# --- onto the fixed grid ----------------------------------------------------------------------------------------------


def test_a_shift_by_whole_voxels_moves_image_and_label_to_the_last_bit(cropped, fixed_size, fixed_affine):
    out = RegisterPaird(("moving", "moving_label"), method=recipe(KnownDDF(SHIFT)))(cropped)

    for key in ("moving", "moving_label"):
        torch.testing.assert_close(
            out[key].as_tensor(), shown_by_fixed(cropped[key].as_tensor(), fixed_size), rtol=0, atol=1e-5
        )
        assert torch.equal(out[key].affine, fixed_affine)
    assert out["moving_label"].dtype == torch.int32
    assert out["fixed"] is cropped["fixed"]


def test_the_total_field_lies_on_the_fixed_grid(cropped, fixed_size, fixed_affine):
    ddf = RegisterPaird(method=recipe(KnownDDF(SHIFT)))(cropped)["ddf"]

    torch.testing.assert_close(ddf.as_tensor(), torch.tensor(SHIFT).reshape(3, 1, 1, 1).expand(3, *fixed_size).float())
    assert isinstance(ddf, MetaTensor)
    assert torch.equal(ddf.affine, fixed_affine)


def test_points_of_fixed_space_go_where_the_field_sends_them(item, in_mm, centre_mm):
    points = centre_mm + torch.tensor([[0.0, 0, 0], [4, 2, -3]])
    both = Compose([RegisterPaird(method=in_mm, ddf_key="field"), WarpPointsd("points", "field", "in_moving")])

    out = both({**item, "points": points})

    torch.testing.assert_close(out["in_moving"], points + torch.tensor(SHIFT_MM), rtol=0, atol=1e-4)
    assert "ddf" not in out


def test_no_key_for_the_field_leaves_none(item, in_mm):
    assert set(RegisterPaird(method=in_mm, ddf_key=None)(item)) == set(item)


def test_intensities_are_those_of_moving_space_whatever_the_grids(item, in_mm, fixed_size, fixed_affine):
    out = RegisterPaird(("moving", "moving_label"), method=in_mm)(item)

    inner = (0, slice(3, -3), slice(3, -3), slice(3, -3))
    moved = item["fixed"] + float(SLOPE @ torch.tensor(SHIFT_MM).double())
    torch.testing.assert_close(out["moving"][inner].as_tensor(), moved[inner].as_tensor(), rtol=0, atol=1e-2)
    assert out["moving"].shape == out["moving_label"].shape == (1, *fixed_size)


def test_other_names_for_image_label_and_field_give_the_same(item, in_mm):
    usual = RegisterPaird(("moving", "moving_label"), method=in_mm)(item)
    renamed = {"mr": item["fixed"], "ct": item["moving"], "organs": item["moving_label"]}

    out = RegisterPaird(("ct", "organs"), "mr", method=in_mm, ddf_key="u")(renamed)

    for key, other in (("moving", "ct"), ("moving_label", "organs"), ("ddf", "u")):
        assert torch.equal(out[other], usual[key])


def test_further_volumes_of_moving_space_are_taken_from_their_own_voxels(item, in_mm, fixed_affine):
    coarse = torch.eye(4, dtype=torch.float64)
    coarse[:3, :3] = torch.diag(torch.tensor([-5.0, 4.0, 6.0]))
    coarse[:3, 3] = torch.tensor([60.0, -60.0, -60.0])
    values = ramp((25, 30, 20), coarse).as_tensor()
    register = RegisterPaird(("moving", "pet"), method=in_mm, mode="bilinear")

    out = register({**item, "pet": MetaTensor(torch.cat([values, 2 * values]), affine=coarse)})

    inner = (slice(None), slice(3, -3), slice(3, -3), slice(3, -3))
    expected = torch.cat([out["moving"], 2 * out["moving"]])[inner]
    torch.testing.assert_close(out["pet"][inner].as_tensor(), expected.as_tensor(), rtol=0, atol=2e-2)
    assert register.inverse(out)["pet"].shape == (2, 25, 30, 20)


def test_the_image_is_interpolated_and_everything_else_keeps_its_values_unless_told_otherwise(item, in_mm):
    mask = item["moving_label"]
    half = {"moving": item["moving"], "fixed": item["fixed"], "moving_label": mask, "score": 10 * mask.float()}

    by_default = RegisterPaird(("moving", "moving_label", "score"), method=in_mm)(half)
    linear = RegisterPaird(("moving", "score"), method=in_mm, mode=("bilinear", "bilinear"))(half)
    smooth = RegisterPaird(("moving", "moving_label"), method=in_mm, mode=("bilinear", "label"))(half)

    assert by_default["score"].unique().tolist() == [0, 10]
    assert len(linear["score"].unique()) > 10
    assert smooth["moving_label"].unique().tolist() == [0, 1]
    assert not torch.equal(smooth["moving_label"], by_default["moving_label"])


def test_the_item_that_came_in_is_not_changed(item, in_mm):
    before = {key: value.clone() for key, value in item.items()}
    register = RegisterPaird(("moving", "moving_label"), method=in_mm)

    out = register(item)
    register.inverse(out)
    register.inverse(out)  # nor is the registered one, so that its inverse can be had again

    for key, value in before.items():
        assert torch.equal(item[key], value)
        assert torch.equal(item[key].affine, value.affine)
        assert item[key].applied_operations == []


def test_masks_and_labels_of_the_images_reach_the_method_under_its_own_names(item, in_mm):
    seen = {}

    def prepare(pair):
        seen.update(pair)
        return in_mm.preparation(pair)

    mask = MetaTensor(torch.ones(item["fixed"].shape), affine=item["fixed"].affine)
    given = {"mr": item["fixed"], "mr_mask": mask, "ct": item["moving"], "ct_label": item["moving_label"], "pair": "a"}

    RegisterPaird("ct", "mr", method=SimpleNamespace(**{**vars(in_mm), "preparation": prepare}))(given)

    assert {"fixed", "moving", "fixed_mask", "moving_label", "pair"} == {key for key in seen if "working" not in key}
    assert seen["fixed_mask"].dtype == torch.uint8


def test_a_label_map_on_a_grid_of_its_own_is_a_passenger(item, in_mm, centre_mm):
    fine = torch.diag(torch.tensor([-1.2, 1.1, 1.3, 1.0], dtype=torch.float64))
    fine[:3, 3] = torch.tensor([32.0, -36.0, -32.0])
    label = ball((45, 40, 43), fine, centre_mm + torch.tensor(SHIFT_MM))
    with_check = Compose([CheckPaird(), in_mm.preparation])
    method = RegistrationRecipe(with_check, in_mm.network, in_mm.completion)

    out = RegisterPaird(("moving", "moving_label"), method=method)({**item, "moving_label": label})

    assert (
        dice(out["moving_label"], RegisterPaird(("moving", "moving_label"), method=in_mm)(item)["moving_label"]) > 0.85
    )


# --- meta data --------------------------------------------------------------------------------------------------------


def test_meta_data_tell_the_place_of_the_fixed_image_and_the_name_of_the_moving_one(item, in_mm):
    original = torch.diag(torch.tensor([3.0, 4.0, 5.0, 1.0]))
    item["fixed"].meta |= {"original_affine": original, "spatial_shape": np.array([7, 8, 9]), "filename_or_obj": "f"}
    item["moving"].meta |= {"original_affine": torch.eye(4), "spatial_shape": np.array([1, 2, 3]), "pixdim": 9, "id": 5}
    register = RegisterPaird(method=in_mm)

    out = register(item)
    back = register.inverse(out)

    assert out["moving"].meta["filename_or_obj"] == "ramp.mha"
    assert torch.equal(out["moving"].meta["original_affine"], original)
    assert out["moving"].meta["spatial_shape"].tolist() == [7, 8, 9]
    assert "pixdim" not in out["moving"].meta
    assert out["ddf"].meta["filename_or_obj"] == "f"
    assert back["moving"].meta["id"] == 5
    assert back["moving"].meta["spatial_shape"].tolist() == [1, 2, 3]
    assert torch.equal(back["moving"].affine, item["moving"].affine)


def test_saveimage_can_resample_the_registered_image_to_the_grid_of_the_fixed_file(item, in_mm, tmp_path):
    for key in ("fixed", "moving"):
        nib.save(nib.Nifti1Image(item[key][0].numpy(), item[key].affine.numpy()), tmp_path / f"{key}.nii.gz")
    keys = ("fixed", "moving")
    load = Compose([LoadImaged(keys, ensure_channel_first=True), Orientationd(keys, "RAS", labels=None)])
    fixed_affine = load({key: tmp_path / f"{key}.nii.gz" for key in keys})["fixed"].affine

    pipeline = Compose([load, RegisterPaird(method=recipe(KnownShiftMM(fixed_affine)))])
    registered = pipeline({key: tmp_path / f"{key}.nii.gz" for key in keys})["moving"]
    SaveImage(tmp_path, "registered", resample=True, mode="bilinear", separate_folder=False, print_log=False)(
        registered
    )

    written, fixed = (nib.load(tmp_path / name) for name in ("moving_registered.nii.gz", "fixed.nii.gz"))
    np.testing.assert_allclose(written.affine, fixed.affine, atol=1e-4)
    inner = (slice(3, -3),) * 3
    moved = fixed.get_fdata() + float(SLOPE @ torch.tensor(SHIFT_MM).double())
    np.testing.assert_allclose(written.get_fdata()[inner], moved[inner], atol=1e-2)


# --- back to the moving grid ------------------------------------------------------------------------------------------


def uncertain(item):
    return {**DDFToFixedGridd()(item), "uncertainty": item["fixed"] * 0 + 2.5}


def test_the_uncertainty_goes_where_it_is_wanted(item, fixed_affine, fixed_size):
    method = recipe(KnownShiftMM(fixed_affine), uncertain)

    out = RegisterPaird(method=method, uncertainty_key="doubt")(item)

    assert torch.equal(out["doubt"].as_tensor(), torch.full((1, *fixed_size), 2.5))
    torch.testing.assert_close(out["doubt"].affine, fixed_affine)
    assert out["doubt"].meta["filename_or_obj"] == "ramp.mha"
    assert RegisterPaird(method=method)(item).keys() == out.keys() - {"doubt"}


def test_an_uncertainty_that_the_method_does_not_tell_is_not_made_up(in_mm, item):
    with pytest.raises(ValueError, match=r"uncertainty_key is given, .* uncertainty=True"):
        RegisterPaird(method=in_mm, uncertainty_key="doubt")(item)


def test_the_inverse_of_a_shift_by_whole_voxels_gives_back_what_the_fixed_grid_showed(cropped, fixed_size):
    register = RegisterPaird(("moving", "moving_label"), method=recipe(KnownDDF(SHIFT)))

    out = register(cropped)
    back = register.inverse(out)

    shown = torch.zeros(cropped["moving"].shape, dtype=torch.bool)
    shown[(0, *where_shown(fixed_size))] = True
    shown = shown.flip(2)
    for key, background in (("moving", out["moving"].min().item()), ("moving_label", 0)):
        expected = torch.where(shown, cropped[key].as_tensor(), torch.tensor(background, dtype=cropped[key].dtype))
        torch.testing.assert_close(back[key].as_tensor(), expected, rtol=0, atol=1e-4)
        assert torch.equal(back[key].affine, cropped[key].affine)
        assert back[key].applied_operations == []


def test_a_segmentation_of_the_fixed_grid_comes_back_as_a_label_map_of_the_moving_grid(
    item, in_mm, fixed_size, fixed_affine, centre_mm
):
    register = RegisterPaird(("moving", "moving_label"), method=in_mm)
    out = register(item)
    predicted = ball(fixed_size, fixed_affine, centre_mm)
    assert dice(out["moving_label"], predicted) > 0.88

    predicted.applied_operations = out["moving_label"].applied_operations
    back = register.inverse({"moving_label": predicted, "moving": out["moving"]})

    assert dice(back["moving_label"], item["moving_label"]) > 0.88
    assert dice(ball(item["moving"].shape[1:], item["moving"].affine, centre_mm), item["moving_label"]) < 0.7


def test_a_result_that_lost_its_affine_is_still_taken_to_lie_on_the_fixed_grid(item, in_mm):
    register = RegisterPaird(method=in_mm)
    out = register(item)
    bare = MetaTensor(out["moving"].as_tensor(), applied_operations=out["moving"].applied_operations)

    assert torch.equal(register.inverse({"moving": bare})["moving"], register.inverse(out)["moving"])


def test_a_deformation_is_undone(item, smooth_ddf, fixed_size, fixed_affine):
    network = KnownDDF(smooth_ddf(fixed_size, 1.2))
    register = RegisterPaird(method=recipe(network))

    out = register(item)
    back = register.inverse(out)["moving"]

    field = SpatialDisplacement(network.ddf, fixed_affine)
    inverse, _ = field.inverse(item["moving"].affine, item["moving"].shape[1:])
    voxel = torch.linalg.inv(fixed_affine) @ item["moving"].affine
    position = torch.tensordot(voxel[:3, :3], grid_voxels(back.shape[1:], torch.eye(4), inverse.ddf).double(), 1)
    position = position + voxel[:3, 3].reshape(3, 1, 1, 1)
    last = torch.tensor(fixed_size).reshape(3, 1, 1, 1) - 1
    inside = ((position > 2) & (position < last - 2)).all(0)
    assert inside.sum() > 300
    error = (back - item["moving"]).as_tensor()[0][inside].abs()
    # the registered ramp is interpolated between voxels: a curvature of the field is lost, a shift is not
    assert error.mean() < 0.5
    assert error.max() < 3
    assert (out["moving"] - item["fixed"]).abs().mean() > 3


def test_a_way_back_that_the_method_found_itself_is_taken(cropped, fixed_size):
    def complete(item):
        found = MetaTensor(torch.zeros(3, *item["moving"].shape[1:]), affine=item["moving"].affine)
        return {**DDFToFixedGridd()(item), "pred_inverse": found}

    one_later = torch.eye(4, dtype=torch.float64)
    one_later[2, 3] = 1
    part = MetaTensor(cropped["moving_label"].as_tensor()[..., 1:], affine=cropped["moving"].affine @ one_later)
    register = RegisterPaird(("moving", "moving_label", "part"), method=recipe(KnownDDF(SHIFT), complete))

    out = register({**cropped, "part": part})
    back = register.inverse(out)

    margin = (slice(None), slice(2, -2), slice(3, -3), slice(4, -4))
    whole = back["moving_label"].as_tensor()
    assert torch.equal(whole.flip(2)[margin], out["moving_label"].as_tensor())  # it says: do not move
    assert torch.equal(back["part"].as_tensor(), whole[..., 1:])


def test_each_volume_goes_back_by_its_own_field(cropped):
    network = KnownDDF(SHIFT)
    register = RegisterPaird(("moving", "moving_label"), method=recipe(network))
    shifted = register(cropped)
    network.ddf = torch.zeros(3)
    still = register(cropped)

    back = register.inverse({"moving": shifted["moving"], "moving_label": still["moving_label"]})

    assert torch.equal(back["moving"], register.inverse(shifted)["moving"])
    assert torch.equal(back["moving_label"], register.inverse(still)["moving_label"])


def folded(size) -> KnownDDF:
    ddf = torch.zeros(3, *size)
    ddf[0, 8], ddf[0, 9] = 2.5, -2.5  # slopes of -1.25 at both, by central differences
    return KnownDDF(ddf)


def test_a_field_that_folds_is_inverted_as_well_as_can_be_and_the_log_says_where(item, fixed_size, caplog):
    register = RegisterPaird(("moving", "moving_label"), method=recipe(folded(fixed_size)))
    out = register(item)

    with caplog.at_level(logging.WARNING):
        back = register.inverse(out)

    inner = (fixed_size[1] - 2) * (fixed_size[2] - 2)
    assert len(caplog.messages) == 1  # image and label share one inversion
    assert f"folds in {2 * inner} voxels" in caplog.messages[0]
    assert "mean residual" in caplog.messages[0]
    assert torch.isfinite(back["moving"]).all()


def test_a_field_that_folds_is_refused_on_demand(item, fixed_size):
    register = RegisterPaird(method=recipe(folded(fixed_size)), allow_folding=False)

    with pytest.raises(ValueError, match=r"folds in \d+ voxels"):
        register.inverse(register(item))


# --- with MONAI's other transforms ------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(fixed_affine) -> Compose:
    """Grids change before and after the registration."""
    everything = ("fixed", "moving", "moving_label")
    directions = fixed_affine[:3, :3] / fixed_affine[:3, :3].norm(dim=0)
    reoriented = torch.eye(4, dtype=torch.float64)  # what Orientationd and Spacingd make of the fixed axes
    reoriented[:3, :3] = directions * directions.diagonal().sign() * torch.tensor([2.0, 2.5, 2.2])
    return Compose(
        [
            EnsureTyped(everything),
            Orientationd(everything, axcodes="RAS", labels=None),
            Spacingd(everything, pixdim=(2.0, 2.5, 2.2), mode=("bilinear", "bilinear", "nearest")),
            RegisterPaird(("moving", "moving_label"), method=recipe(KnownShiftMM(reoriented))),
            Flipd(("moving", "moving_label"), spatial_axis=1),
        ]
    )


def assert_on_its_own_grid(back: MetaTensor, original: MetaTensor) -> None:
    assert back.shape == original.shape
    torch.testing.assert_close(back.affine, original.affine, rtol=0, atol=1e-6)


def inner_part(image: MetaTensor, fixed: MetaTensor, margin: float = 2.5) -> torch.Tensor:
    """Voxels of a moving image whose origin lies well inside the fixed image."""
    world = grid_voxels(image.shape[1:], image.affine, dtype=torch.float64)
    origin = world - torch.tensor(SHIFT_MM).reshape(3, 1, 1, 1)
    matrix = torch.linalg.inv(fixed.affine)
    voxel = torch.tensordot(matrix[:3, :3], origin, 1) + matrix[:3, 3].reshape(3, 1, 1, 1)
    last = torch.tensor(fixed.shape[1:]).reshape(3, 1, 1, 1) - 1
    return ((voxel > margin) & (voxel < last - margin)).all(0)


def test_inverse_of_a_compose_leads_through_all_transforms_to_the_original_grids(item, pipeline):
    out = pipeline(item)
    back = pipeline.inverse(out)

    assert out["moving"].shape == out["fixed"].shape != item["fixed"].shape
    for key in item:
        assert_on_its_own_grid(back[key], item[key])
    inner = inner_part(item["moving"], item["fixed"])
    assert inner.sum() > 100
    torch.testing.assert_close(
        back["moving"][0][inner].as_tensor(), item["moving"][0][inner].as_tensor(), rtol=0, atol=0.05
    )
    assert dice(back["moving_label"], item["moving_label"]) > 0.85


def test_invertd_brings_a_prediction_from_the_fixed_grid_to_the_original_moving_file(item, pipeline):
    out = pipeline(item)
    inner = inner_part(item["moving"], item["fixed"])
    middle = item["moving"][0][inner].median().item()
    prediction = Compose(
        [
            CopyItemsd("moving", names="pred"),
            Lambdad("pred", lambda image: (image > middle).as_tensor().float()),
            Invertd("pred", pipeline, orig_keys="moving", nearest_interp=True),
        ]
    )(out)["pred"]

    assert_on_its_own_grid(prediction, item["moving"])
    assert prediction.unique().tolist() == [0, 1]
    expected = (item["moving"] > middle)[0][inner]
    assert (prediction[0][inner].bool() == expected).float().mean() > 0.93
    out["pred"] = (out["moving"] > middle).float()
    linear = Invertd("pred", pipeline, orig_keys="moving", nearest_interp=False)(out)["pred"]
    assert len(linear.unique()) > 10


@pytest.mark.parametrize("workers", [0, 2])
def test_items_of_a_batch_come_back_each_to_its_own_grid(item, pipeline, workers):
    shifted = torch.eye(4, dtype=torch.float64)
    shifted[:3, 3] = torch.tensor([3.0, -1.0, 2.0])
    second = {"fixed": item["fixed"]} | {
        key: MetaTensor(item[key].as_tensor().flip(1), affine=shifted @ item[key].affine)
        for key in ("moving", "moving_label")
    }
    alone = [pipeline.inverse(pipeline(pair)) for pair in (item, second)]

    (batch,) = DataLoader(Dataset([item, second], pipeline), batch_size=2, num_workers=workers)
    assert batch["moving"].shape[0] == batch["ddf"].shape[0] == 2
    pairs = decollate_batch(batch)
    predicted = [
        Invertd("pred", pipeline, orig_keys="moving", nearest_interp=False)({**pair, "pred": 2 * pair["moving"]})[
            "pred"
        ]
        for pair in pairs
    ]
    together = [pipeline.inverse(pair) for pair in pairs]

    for pair, of_batch, pred in zip(alone, together, predicted, strict=True):
        for key in ("moving", "moving_label"):
            assert_on_its_own_grid(of_batch[key], pair[key])
            torch.testing.assert_close(of_batch[key].as_tensor(), pair[key].as_tensor())
        assert_on_its_own_grid(pred, pair["moving"])
        torch.testing.assert_close(pred.as_tensor(), 2 * pair["moving"].as_tensor())
    assert not torch.equal(together[0]["moving"].affine, together[1]["moving"].affine)


# --- bundles ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom() -> dict[str, MetaTensor]:
    """Moving lies on a cropped grid with its first axis flipped."""
    pair = phantom_pair(size=(48, 40, 32), spacing=(4, 4, 6), max_displacement_mm=15)
    for key in ("moving", "moving_label"):
        affine = pair[key].affine @ torch.tensor(
            [[-1.0, 0, 0, 47], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64
        )
        pair[key] = MetaTensor(pair[key].as_tensor().flip(1)[:, :, 1:], affine=affine)
    return pair


@pytest.fixture(scope="module")
def registered(phantom):
    register = RegisterPaird(("moving", "moving_label"), device="cpu", **SMALL)
    return register, register(phantom)


def mean_dice(first, second) -> float:
    """Percent, over the five organs."""
    return float(100 * compute_learn2reg_dice(first, second, first, labels=range(1, 6)).mean())


def test_a_bundle_registers_by_its_name_and_labels_come_back(phantom, registered):
    register, out = registered
    original_grid = RegisterPaird(("moving", "moving_label"), method=recipe(KnownDDF((0, 0, 0))))(phantom)
    before = mean_dice(original_grid["moving_label"], phantom["fixed_label"])
    after = mean_dice(out["moving_label"], phantom["fixed_label"])
    assert after > before + 8

    prediction = MetaTensor(phantom["fixed_label"], applied_operations=out["moving_label"].applied_operations)
    back = register.inverse({"moving_label": prediction, "moving": out["moving"]})

    assert back["moving_label"].shape == phantom["moving_label"].shape
    assert mean_dice(back["moving_label"], phantom["moving_label"]) > before + 8
    round_trip = register.inverse(out)["moving_label"]
    assert mean_dice(round_trip, phantom["moving_label"]) > 85


def test_the_field_is_the_one_that_running_the_bundle_writes(phantom, registered, bundles_dir, tmp_path):
    for key in ("fixed", "moving"):
        nib.save(nib.Nifti1Image(phantom[key][0].numpy(), phantom[key].affine.numpy()), tmp_path / f"{key}.nii.gz")
    bundle = bundles_dir / "convex_adam"
    files = {key: str(tmp_path / f"{key}.nii.gz") for key in ("fixed", "moving")}
    running = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=str(bundle),
        output_dir=str(tmp_path / "output"),
        device="$torch.device('cpu')",
        **files,
        **SMALL,
    )
    running.initialize()
    running.run()

    written = nib.load(tmp_path / "output" / "fixed__moving" / "ddf.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(registered[1]["ddf"].movedim(0, -1).numpy(), written, atol=1e-3)


def test_a_pickled_or_copied_transform_registers_the_same(phantom, registered):
    register, out = registered

    for copied in (pickle.loads(pickle.dumps(register)), copy.deepcopy(register)):
        assert torch.equal(copied(phantom)["ddf"], out["ddf"])


def test_a_bundle_is_built_at_its_first_use_once_and_once_more_by_a_copy(monkeypatch):
    built = []
    build = RegistrationRecipe.from_config
    monkeypatch.setattr(RegistrationRecipe, "from_config", lambda *args: built.append(args) or build(*args))

    register = RegisterPaird(device="cpu")
    assert not built

    assert register.recipe is register.recipe
    assert len(built) == 1
    assert copy.deepcopy(register).recipe is not register.recipe
    assert len(built) == 2


def test_overrides_and_settings_reach_the_bundle():
    register = RegisterPaird(device="cpu", settings="same_modality", **{"network_def#passes": 2})

    assert register.recipe.network.passes == 2
    assert type(register.recipe.network.features).__name__ == "FeatureConcat"


class WhereBuilt(torch.utils.data.Dataset):
    def __init__(self, register) -> None:
        self.register = register

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index) -> str:
        return str(self.register.recipe.device)


def test_a_worker_process_registers_on_the_cpu_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def device(register, workers):
        return next(iter(torch.utils.data.DataLoader(WhereBuilt(register), num_workers=workers)))[0]

    assert device(RegisterPaird(), 0) == "cuda"
    assert device(RegisterPaird(), 1) == "cpu"
    assert device(RegisterPaird(device="meta"), 1) == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_field_where_the_images_are(phantom, registered):
    out = RegisterPaird(("moving", "moving_label"), device="cuda", **SMALL)(phantom)

    assert out["ddf"].device == out["moving"].device == phantom["moving"].device
    assert (out["ddf"] - registered[1]["ddf"]).abs().mean() < 0.02


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["fixed", "moving", "moving_label"])
def test_a_missing_key_is_named(item, in_mm, missing):
    del item[missing]

    with pytest.raises(KeyError, match=f"`?'?{missing}"):
        RegisterPaird(("moving", "moving_label"), method=in_mm)(item)


def test_labels_may_be_absent_on_demand(item, in_mm):
    del item["moving_label"]
    register = RegisterPaird(("moving", "moving_label"), method=in_mm, allow_missing_keys=True)

    out = register(item)

    assert set(out) == {"fixed", "moving", "ddf"}
    assert set(register.inverse(out)) == set(out)


@pytest.mark.parametrize("key", ["fixed", "moving", "moving_label"])
def test_a_volume_without_its_place_in_space_is_refused(item, in_mm, key):
    item[key] = item[key].as_tensor()

    with pytest.raises(TypeError, match=f"^{key} must be a MetaTensor.*got Tensor"):
        RegisterPaird(("moving", "moving_label"), method=in_mm)(item)


def test_an_unknown_method_is_refused_with_those_that_exist():
    with pytest.raises(FileNotFoundError, match=r"no bundle 'convexadam'.*convex_adam"):
        RegisterPaird(method="convexadam")


def test_a_method_that_is_none_is_refused_with_what_it_lacks():
    with pytest.raises(TypeError, match=r"SimpleNamespace lacks preparation, completion"):
        RegisterPaird(method=SimpleNamespace(network=nn.Identity()))


def test_an_id_that_the_bundle_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"no id intial.*there are .*initial"):
        RegisterPaird(intial="affine")


@pytest.mark.parametrize("change", [{"initial": "affine"}, {"settings": "labels"}])
def test_a_recipe_has_no_config_to_change(in_mm, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}: only a bundle"):
        RegisterPaird(method=in_mm, **change)


def test_an_unknown_mode_is_refused(in_mm):
    with pytest.raises(ValueError, match="for every key, got 'linear'"):
        RegisterPaird(("moving", "moving_label"), method=in_mm, mode=("bilinear", "linear"))


def test_the_fixed_image_is_no_key(in_mm):
    with pytest.raises(ValueError, match="'fixed' is the fixed image"):
        RegisterPaird(("moving", "fixed"), method=in_mm)


def test_a_result_of_another_size_is_not_taken_back(item, in_mm):
    register = RegisterPaird(method=in_mm)
    out = register(item)
    out["moving"] = out["moving"][:, 1:]

    with pytest.raises(ValueError, match=r"moving has \(16, 14, 11\) voxels, but was registered onto \(17, 14, 11\)"):
        register.inverse(out)


def test_what_was_not_registered_is_not_taken_back(item, in_mm):
    with pytest.raises(ValueError, match="applied_operations"):
        RegisterPaird(method=in_mm).inverse(item)
