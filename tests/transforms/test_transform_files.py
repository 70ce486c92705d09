# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (its own name for itself)
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from monai_reg_ext.transforms import (
    SpatialDisplacement,
    moving_voxels,
    read_linear_transform,
    read_transform,
    voxel_to_mm,
    write_transform,
)

FLIP = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
IMAGES = ["field.nii.gz", "field.nii", "field.nrrd", "field.mha"]
TRANSFORMS = ["field.h5", "field.hdf5", "field.tfm", "field.txt"]


@pytest.fixture
def moving(smooth_image, moving_size, moving_affine) -> MetaTensor:
    return smooth_image(moving_size, moving_affine)


@pytest.fixture
def linear() -> torch.Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", (4, -3, 6), degrees=True).as_matrix()) * 1.07
    matrix[0, 1] += 0.05  # a shear
    matrix[:3, 3] = torch.tensor([2.0, -3.0, 1.5])
    return matrix


def apart_mm(one: SpatialDisplacement, other: SpatialDisplacement) -> float:
    assert one.size == other.size
    points = voxel_to_mm(torch.cartesian_prod(*[torch.arange(float(extent)) for extent in one.size]), one.affine)
    return max(
        (one.affine - other.affine).abs().max().item(),
        (one.warp_points(points) - other.warp_points(points)).norm(dim=1).max().item(),
    )


def some_points(field: SpatialDisplacement, margin: int = 2) -> torch.Tensor:
    axes = [torch.arange(margin, extent - margin, 3, dtype=torch.float64) + 0.31 for extent in field.size]
    return voxel_to_mm(torch.cartesian_prod(*axes), field.affine)


def through_sitk(transform: sitk.Transform, points: torch.Tensor) -> torch.Tensor:
    return torch.tensor([transform.TransformPoint(p) for p in (points * FLIP).tolist()], dtype=torch.float64) * FLIP


def assert_interior_equal(warped: MetaTensor, theirs: np.ndarray, field: SpatialDisplacement, moving: MetaTensor):
    coordinates = moving_voxels(field.ddf, field.affine, moving.affine)
    last = torch.tensor(moving.shape[1:]).reshape(3, 1, 1, 1) - 1
    inside = ((coordinates > 0) & (coordinates < last)).all(0).numpy()
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    assert inside.mean() > 0.1
    deviation = np.abs(warped[0].numpy() - theirs)[inside].max() / (moving.max() - moving.min()).item()
    assert deviation < 1e-3
    assert theirs[inside].std() > 10


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*IMAGES, *TRANSFORMS])
def test_a_field_comes_back_from_every_itk_file_to_a_ten_thousandth_of_a_mm(name, field, fixed, tmp_path):
    write_transform(field, tmp_path / "new" / name)

    assert apart_mm(field, read_transform(tmp_path / "new" / name)) < 1e-4
    assert apart_mm(field, read_transform(tmp_path / "new" / name, fixed)) < 1e-4
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


@pytest.mark.parametrize("name", ["linear.mat", "linear.tfm", "linear.txt", "linear.h5"])
def test_a_matrix_comes_back_from_every_file_and_its_inverse_on_demand(name, linear, tmp_path):
    write_transform(linear, tmp_path / name)

    torch.testing.assert_close(read_linear_transform(tmp_path / name), linear, rtol=0, atol=1e-9)
    both = read_linear_transform([tmp_path / name, tmp_path / name], invert=[True, False])
    torch.testing.assert_close(both, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)


# --- SimpleITK --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*IMAGES, *TRANSFORMS])
def test_simpleitk_warps_image_and_points_with_our_file_as_we_do(name, field, fixed, moving, tmp_path, to_sitk):
    write_transform(field, tmp_path / name)

    if name in IMAGES:
        transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64))
    else:
        transform = sitk.ReadTransform(str(tmp_path / name))
    theirs = sitk.Resample(
        to_sitk(moving[0].numpy(), moving.affine), to_sitk(fixed[0].numpy(), fixed.affine), transform, sitk.sitkLinear
    )

    points = some_points(field)
    torch.testing.assert_close(field.warp_points(points), through_sitk(transform, points), rtol=0, atol=1e-3)
    assert_interior_equal(field.warp(moving), sitk.GetArrayFromImage(theirs).transpose(2, 1, 0), field, moving)


def test_our_composite_of_matrix_and_field_is_simpleitks(field, fixed, linear, tmp_path):
    write_transform([field, linear], tmp_path / "composite.h5")

    theirs = sitk.ReadTransform(str(tmp_path / "composite.h5"))
    ours = read_transform(tmp_path / "composite.h5", fixed)

    voxels = torch.cartesian_prod(*[torch.arange(1.0, extent - 1, 3) for extent in field.size])
    points = voxel_to_mm(voxels, field.affine)
    expected = field.warp_points(points) @ linear[:3, :3].T + linear[:3, 3]  # the field first
    torch.testing.assert_close(through_sitk(theirs, points), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.warp_points(points), expected, rtol=0, atol=1e-3)


def test_any_transform_that_simpleitk_writes_moves_points_the_same_way(fixed, tmp_path, to_sitk):
    rigid = sitk.VersorRigid3DTransform((0, 0, 1), 0.2, (3, -2, 1), (10, 20, 5))
    spline = sitk.BSplineTransformInitializer(to_sitk(fixed[0].numpy(), fixed.affine), [4, 5, 3])
    generator = np.random.default_rng(0)
    spline.SetParameters(generator.uniform(-2, 2, spline.GetNumberOfParameters()).tolist())
    composite = sitk.CompositeTransform([rigid, spline, sitk.ScaleTransform(3, (1.1, 1, 0.9))])
    transforms = [rigid, spline, composite, sitk.TranslationTransform(3, (1, 2, 3)), sitk.Transform()]

    for transform in transforms:
        sitk.WriteTransform(transform, str(tmp_path / "any.tfm"))
        field = read_transform(tmp_path / "any.tfm", fixed)

        voxels = torch.cartesian_prod(*[torch.arange(1.0, extent - 1, 3) for extent in field.size])
        points = voxel_to_mm(voxels, field.affine)
        torch.testing.assert_close(field.warp_points(points), through_sitk(transform, points), rtol=0, atol=1e-3)


def test_a_field_on_another_grid_is_brought_onto_the_images(fixed, smooth_ddf, moving_affine, moving_size, tmp_path):
    other = SpatialDisplacement(smooth_ddf(moving_size, 1.1), moving_affine)
    write_transform(other, tmp_path / "other.nrrd")

    onto = read_transform(tmp_path / "other.nrrd", fixed)

    assert onto.size == tuple(fixed.shape[1:])
    voxels = torch.cartesian_prod(*[torch.arange(2.0, extent - 2, 2) for extent in onto.size])
    points = voxel_to_mm(voxels, onto.affine)
    torch.testing.assert_close(onto.warp_points(points), other.warp_points(points), rtol=0, atol=1e-3)


# --- ANTs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ants():
    return pytest.importorskip("ants", reason="antspyx is not installed")


@pytest.fixture
def pair_files(fixed, moving, tmp_path, to_sitk):
    for name, image in (("fixed", fixed), ("moving", moving)):
        sitk.WriteImage(to_sitk(image[0].numpy(), image.affine), str(tmp_path / f"{name}.nii.gz"))
    return str(tmp_path / "fixed.nii.gz"), str(tmp_path / "moving.nii.gz")


def test_ants_warps_the_original_image_with_our_field_as_we_do(ants, pair_files, field, moving, tmp_path):
    write_transform(field, tmp_path / "field.nii.gz")

    theirs = ants.apply_transforms(*map(ants.image_read, pair_files), [str(tmp_path / "field.nii.gz")])

    assert_interior_equal(field.warp(moving), theirs.numpy(), field, moving)


def test_files_in_a_row_have_the_order_and_inversion_of_ants(ants, pair_files, field, fixed, moving, linear, tmp_path):
    write_transform(field, tmp_path / "a_1Warp.nii.gz")
    write_transform(linear, tmp_path / "a_0GenericAffine.mat")
    names = [str(tmp_path / "a_1Warp.nii.gz"), str(tmp_path / "a_0GenericAffine.mat")]
    images = [ants.image_read(name) for name in pair_files]

    for order, flags in ((names, [False, False]), (names, [False, True]), (names[::-1], [True, False])):
        theirs = ants.apply_transforms(*images, order, whichtoinvert=flags).numpy()
        ours = read_transform(order, fixed, invert=flags)
        assert_interior_equal(ours.warp(moving), theirs, ours, moving)


def test_what_ants_registers_is_applied_and_undone_as_ants_does(ants, pair_files, fixed, moving, linear, tmp_path):
    # a given affine: one that ANTs finds on so small a pair is now and then somewhere else
    write_transform(linear, tmp_path / "initial.mat")
    options = {"initial_transform": str(tmp_path / "initial.mat"), "reg_iterations": (20,), "syn_metric": "meansquares"}
    images = [ants.image_read(name) for name in pair_files]
    result = ants.registration(*images, "SyNOnly", outprefix=str(tmp_path / "b_"), **options)

    forward = read_transform(result["fwdtransforms"], fixed)
    backward = read_transform(result["invtransforms"], moving, invert=[True, False])

    assert forward.ddf.abs().max() > 0.2
    theirs = ants.apply_transforms(*images, result["fwdtransforms"]).numpy()
    assert_interior_equal(forward.warp(moving), theirs, forward, moving)
    theirs = ants.apply_transforms(*images[::-1], result["invtransforms"], whichtoinvert=[True, False]).numpy()
    assert_interior_equal(backward.warp(fixed), theirs, backward, fixed)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_field_that_lies_elsewhere_than_the_image_is_refused(field, fixed, linear, tmp_path):
    far = field.affine.clone()
    far[2, 3] += 100
    write_transform(SpatialDisplacement(field.ddf, far), tmp_path / "far.nii.gz")
    away = linear.clone()
    away[:3, 3] += 200
    write_transform([away, field], tmp_path / "away.h5")

    for name in ("far.nii.gz", "away.h5"):
        with pytest.raises(ValueError, match=rf"{name}: .*lies elsewhere in space than the fixed image"):
            read_transform(tmp_path / name, fixed)


def test_a_transform_of_unknown_type_is_named(linear, tmp_path):
    write_transform(linear, tmp_path / "good.tfm")
    text = (tmp_path / "good.tfm").read_text()
    (tmp_path / "fancy.tfm").write_text(text.replace("AffineTransform", "FancyTransform"))

    with pytest.raises(ValueError, match=r"fancy\.tfm: a transform of unknown type, FancyTransform_double_3_3"):
        read_linear_transform(tmp_path / "fancy.tfm")


@pytest.mark.parametrize("intent", ["NREG_TRANS", "Mapping"])
def test_fields_of_niftyreg_and_spm_are_refused_though_they_look_like_itks(intent, field, fixed, tmp_path):
    write_transform(field, tmp_path / "foreign.nii.gz")
    image = nib.load(tmp_path / "foreign.nii.gz")
    image.header.set_intent("vector", name=intent)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "foreign.nii.gz")

    with pytest.raises(ValueError, match=rf"foreign\.nii\.gz: a transform of unknown type, {intent}"):
        read_transform(tmp_path / "foreign.nii.gz", fixed)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("junk.h5", b"no HDF5", "cannot be read as a transform"),
        ("junk.tfm", b"(Transform elastix)", "cannot be read as a transform"),
        ("junk.mat", b"", "cannot be read as a transform"),
        ("junk.nrrd", b"NRRD0004\n", "cannot be read"),
        ("junk.nii.gz", b"no gzip", "cannot be read as NIfTI"),
        ("field.lta", b"", r"the suffix of a transform must be one of \.nii\.gz, .*\.npz"),
    ],
)
def test_a_file_that_is_no_transform_is_named(name, content, message, fixed, tmp_path):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=re.escape(name) + ".*" + message):
        read_transform(tmp_path / name, fixed)


def test_images_that_are_no_fields_and_transforms_of_planes_are_refused(fixed, tmp_path, to_sitk):
    sitk.WriteImage(to_sitk(fixed[0].numpy(), fixed.affine), str(tmp_path / "scalar.mha"))
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "plane.tfm"))

    with pytest.raises(ValueError, match=r"scalar\.mha: .*3 components"):
        read_transform(tmp_path / "scalar.mha", fixed)
    with pytest.raises(ValueError, match=r"plane\.tfm: a Euler2DTransform_double_2_2 does not move points of space"):
        read_transform(tmp_path / "plane.tfm", fixed)


def test_what_needs_a_fixed_image_a_file_or_linearity_says_so(field, fixed, linear, tmp_path):
    write_transform(linear, tmp_path / "linear.mat")
    write_transform(field, tmp_path / "field.mha")

    with pytest.raises(ValueError, match=r"linear\.mat: .*give the fixed image"):
        read_transform(tmp_path / "linear.mat")
    with pytest.raises(FileNotFoundError, match=r"absent\.h5"):
        read_transform([tmp_path / "field.mha", tmp_path / "absent.h5"], fixed)
    with pytest.raises(ValueError, match=r"field\.mha: .*not linear"):
        read_linear_transform(tmp_path / "field.mha")
    with pytest.raises(ValueError, match=r"field\.mha: only linear transforms are inverted"):
        read_transform(tmp_path / "field.mha", fixed, invert=True)


def test_suffixes_that_cannot_hold_the_transform_are_refused_and_nothing_is_written(field, linear, tmp_path):
    cases = [
        (field, "field.png", "itk", "suffix"),
        (field, "field.mat", "itk", "one matrix"),
        (linear, "linear.nii.gz", "itk", "one field"),
        ([field, linear], "both.nrrd", "itk", "from_chain"),
        (linear, "linear.npz", "itk", "one field"),
        (field, "field.nrrd", "learn2reg", "Learn2Reg"),
        (field, "field.nii.gz", "ras", "form must be one of"),
    ]
    for transform, name, form, message in cases:
        with pytest.raises(ValueError, match=message):
            write_transform(transform, tmp_path / name, form)
    assert not list(tmp_path.iterdir())


def test_a_sheared_grid_is_not_written_in_formats_that_cannot_say_it(field, linear, tmp_path):
    sheared = SpatialDisplacement(field.ddf, linear @ field.affine)

    with pytest.raises(ValueError, match="right angles"):
        write_transform(sheared, tmp_path / "sheared.nrrd")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_older_file_whole(field, tmp_path, monkeypatch):
    write_transform(field, tmp_path / "field.nii.gz")
    before = (tmp_path / "field.nii.gz").read_bytes()

    def fail(image, path, **options):
        with open(path, "wb") as file:
            file.write(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr("monai_reg_ext.transforms.transform_files.itk.imwrite", fail)
    with pytest.raises(RuntimeError):
        write_transform(field, tmp_path / "field.nii.gz")

    assert [path.name for path in tmp_path.iterdir()] == ["field.nii.gz"]
    assert (tmp_path / "field.nii.gz").read_bytes() == before
