# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from monai_reg_ext.apps.copy_bundle import copy_bundle
from monai_reg_ext.apps.label import AppBundle, RegistrationService
from monai_reg_ext.apps.label.datastore_files import moving_files
from monai_reg_ext.data.bundle_dir import bundle_dir
from monai_reg_ext.networks.layers import fuse_labels
from monai_reg_ext.transforms import LoadPaird, RegisterPaird, read_transform


@pytest.fixture
def ask(datastore, tmp_path):
    """``ask(moving="case_2", ...)``: path and facts of a result on the grid of case_1 (or ``image=...``)."""
    written: list[str] = []

    def ask(bundle: AppBundle | None = None, image: str = "case_1", **request):
        request["moving_files"] = moving_files(datastore, request, needs_labels=False)
        service = RegistrationService(bundle or AppBundle("convex_adam", tmp_path))
        path, facts = service({"image": datastore.get_image_uri(image), "device": "cpu", **request})
        written.append(path)
        return path, facts

    yield ask
    for path in written:
        Path(path).unlink()


@pytest.fixture(scope="module")
def expected(studies):
    """What the transform for pipelines makes of case_2 on case_1."""
    pair = {"fixed": str(studies / "case_1.nii.gz"), "moving": str(studies / "case_2.nii.gz")}
    pair["moving_label"] = str(studies / "labels" / "final" / "case_2.nii.gz")
    return RegisterPaird(("moving", "moving_label"), mode=("bilinear", "label"), device="cpu")(LoadPaird()(pair))


def test_the_default_is_the_warped_label_map_in_the_smallest_type(ask, expected):
    path, facts = ask(moving="case_2")

    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected["moving_label"][0].numpy())
    np.testing.assert_allclose(image.affine, expected["fixed"].affine.numpy(), atol=1e-5)
    assert facts["output_kind"] == "warped_label"
    assert facts["moving"]["case_2"]["folding_percent"] == 0
    assert 0 < facts["moving"]["case_2"]["sdlogj"] < 1


def test_the_warped_image_is_asked_for(ask, expected):
    path, _ = ask(moving="case_2", output_kind="warped")

    np.testing.assert_allclose(np.asarray(nib.load(path).dataobj), expected["moving"][0].numpy(), atol=1e-3)


def test_the_ddf_has_voxels_on_the_last_axis(ask, expected):
    path, _ = ask(moving="case_2", output_kind="ddf")

    image = nib.load(path)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_allclose(np.asarray(image.dataobj), expected["ddf"].permute(1, 2, 3, 0).numpy(), atol=1e-5)
    np.testing.assert_allclose(image.affine, expected["fixed"].affine.numpy(), atol=1e-5)


@pytest.mark.parametrize("extension", [None, ".nrrd"])
def test_the_field_is_one_that_itk_reads(ask, expected, extension):
    path, _ = ask(moving="case_2", output_kind="field", result_extension=extension)

    assert path.endswith(extension or ".nii.gz")
    assert itk.imread(path, itk.Vector[itk.F, 3]).GetNumberOfComponentsPerPixel() == 3
    field = read_transform(path, expected["fixed"])
    torch.testing.assert_close(field.ddf, expected["ddf"].as_tensor(), atol=1e-3, rtol=0)


def test_a_viewers_own_suffix_becomes_the_plain_one(ask):
    assert ask(moving="case_2", result_extension=".seg.nrrd")[0].endswith(".nrrd")


def test_several_atlases_vote(ask):
    names = ("case_2", "case_3", "case_4")
    alone = torch.stack([torch.from_numpy(nib.load(ask(moving=name)[0]).get_fdata()) for name in names])

    path, facts = ask(moving=",".join(names), fusion="majority")

    np.testing.assert_array_equal(nib.load(path).get_fdata(), fuse_labels(alone).numpy())
    assert list(facts["moving"]) == list(names)


def test_the_image_itself_wins_where_agreement_decides(ask, studies):
    # a label map of its own against two of other bodies, which agree less everywhere
    path, _ = ask(moving="case_3,case_1,case_4", fusion="local")

    own = nib.load(studies / "labels" / "final" / "case_1.nii.gz").get_fdata()
    assert (nib.load(path).get_fdata() == own).mean() > 0.97


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"output_kind": "warp"}, "output_kind must be one of warped_label, warped, ddf, field"),
        ({"fusion": "best"}, "fusion must be one of local, majority"),
        ({"moving": "case_2,case_3", "output_kind": "ddf"}, "ddf needs a single one"),
        ({"output_kind": "ddf", "result_extension": ".png"}, "result_extension of ddf must be one of"),
        ({"settings": "../inference"}, "has no settings '../inference'"),
        ({"spacing": "$1"}, "spacing must be a number or a single word"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(ask, request_, message):
    with pytest.raises(ValueError, match=message):
        ask(**{"moving": "case_2", **request_})


def test_settings_and_options_reach_the_bundle(ask, studies):
    plain, _ = ask(moving="case_2", output_kind="ddf")
    changed, _ = ask(moving="case_2", output_kind="ddf", settings="same_modality")
    coarse, _ = ask(moving="case_2", output_kind="ddf", spacing="[8, 8, 8]")

    fields = [nib.load(path).get_fdata() for path in (plain, changed, coarse)]
    assert np.abs(fields[0] - fields[1]).max() > 0.1
    assert np.abs(fields[0] - fields[2]).max() > 0.1


def test_without_weights_it_says_so_and_registers_nothing(ask, tmp_path):
    folder = copy_bundle(bundle_dir("fused_convex"), tmp_path / "model" / "fused_convex")
    (folder / "models" / "model.pt").unlink()

    with pytest.raises(ValueError, match=r"fused_convex has no weights yet, so it is not served. Train it"):
        ask(AppBundle("fused_convex", tmp_path), moving="case_2")


def test_weights_of_another_network_are_refused(ask, tmp_path):
    folder = copy_bundle(bundle_dir("fused_convex"), tmp_path / "model" / "fused_convex")
    shutil.copy(bundle_dir("gauss_newton") / "models" / "model.pt", folder / "models" / "model.pt")

    with pytest.raises(ValueError, match=r"model.pt: has no"):
        ask(AppBundle("fused_convex", tmp_path), moving="case_2")
