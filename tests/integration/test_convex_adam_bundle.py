# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import SimpleITK as sitk  # noqa: N813
from monai.bundle import ConfigWorkflow

from monai_reg_ext.data import phantom_pair, write_points

PHANTOM = {"size": (48, 40, 32), "spacing": (4, 4, 6), "max_displacement_mm": 15}
SMALL = {
    "network_def#estimator#half_width": 3,
    "network_def#refiner#iterations": 20,
}


@pytest.fixture(scope="module")
def bundle(bundles_dir) -> Path:
    return bundles_dir / "convex_adam"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A phantom as files of three formats; the moving scan lies on a cropped, flipped grid of its own."""
    folder = tmp_path_factory.mktemp("scans")
    pair = phantom_pair(**PHANTOM)
    paths = {}
    for key, suffix in {"fixed": "nii.gz", "moving": "mha", "fixed_label": "nii.gz", "moving_label": "nrrd"}.items():
        nifti = folder / f"{key}.nii.gz"
        nib.save(nib.Nifti1Image(pair[key][0].numpy(), pair[key].affine.numpy()), nifti)
        image = sitk.ReadImage(str(nifti))
        if key.startswith("moving"):
            image = sitk.Flip(image, (True, False, False))[2:, 1:, :]
        paths[key] = str(folder / f"{key}.{suffix}")
        sitk.WriteImage(image, paths[key])
    for side in ("fixed", "moving"):
        paths[f"{side}_points"] = str(folder / f"{side}_points.csv")
        write_points(paths[f"{side}_points"], pair[f"{side}_points"])
    return paths


def test_two_files_become_an_aligned_scan_and_a_field_that_itk_applies_to_the_original(
    run, read_table, files, tmp_path
):
    run("inference.json", "evaluate.json", pictures=True, output_dir=str(tmp_path), **files, **SMALL)

    folder = tmp_path / "fixed__moving"
    written = {path.name for path in folder.iterdir()}
    assert written == {"warped.nii.gz", "warped_label.nii.gz", "ddf.nii.gz", "field.nii.gz", "report.png"}
    fixed = nib.load(files["fixed"])
    for name in written - {"report.png"}:
        np.testing.assert_allclose(nib.load(folder / name).affine, fixed.affine, atol=1e-4)
    assert nib.load(folder / "ddf.nii.gz").shape == (*fixed.shape, 3)

    field = sitk.DisplacementFieldTransform(
        sitk.Cast(sitk.ReadImage(str(folder / "field.nii.gz")), sitk.sitkVectorFloat64)
    )
    reference = sitk.ReadImage(files["fixed"])
    by_itk = sitk.GetArrayFromImage(
        sitk.Resample(sitk.ReadImage(files["moving"]), reference, field, sitk.sitkLinear, -9e3)
    )
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "warped.nii.gz")))
    inside = scipy.ndimage.binary_erosion(by_itk > -5e3)  # ITK goes on for half a voxel beyond the last one
    assert inside.mean() > 0.5
    assert np.abs(by_itk - ours)[inside].mean() < 0.5  # Hounsfield units

    (row,) = read_table(tmp_path / "metrics.csv")
    assert row["error"] == ""
    assert float(row["dice"]) > float(row["dice_before"]) + 10
    assert float(row["tre_mm"]) < 0.6 * float(row["tre_mm_before"])
    assert float(row["folding_percent"]) < 0.1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pairs"] == 1
    assert summary["failed"] == 0
    assert summary["dice"] == pytest.approx(float(row["dice"]))
    assert {"dice30", "hd95", "sdlogj", "folding_percent", "tre_mm", "seconds_per_pair", "method"} <= summary.keys()


def test_masks_are_taken(run, read_table, files, tmp_path):
    scan = nib.load(files["fixed"])
    body = np.asarray(scan.dataobj) > -500
    nib.save(nib.Nifti1Image(body.astype(np.uint8), scan.affine), tmp_path / "mask.nii.gz")

    run(
        "inference.json", output_dir=str(tmp_path / "out"), fixed=files["fixed"], moving=files["fixed"],
        fixed_mask=str(tmp_path / "mask.nii.gz"), moving_mask=str(tmp_path / "mask.nii.gz"), **SMALL,
    )  # fmt: skip

    assert read_table(tmp_path / "out" / "metrics.csv")[0]["error"] == ""
    ddf = np.asarray(nib.load(tmp_path / "out" / "fixed__fixed" / "ddf.nii.gz").dataobj)
    assert np.abs(ddf[body]).mean() < 0.5


def mean_dice(found: np.ndarray, truth: np.ndarray) -> float:
    labels = np.unique(truth[truth > 0])
    both = [np.sum((found == label) & (truth == label)) for label in labels]
    sizes = [np.sum(found == label) + np.sum(truth == label) for label in labels]
    return float(np.mean(2 * np.divide(both, sizes)))


@pytest.mark.parametrize(("inverse", "most_mm"), [("numeric", 0.5), ("symmetric", 1.0)])
def test_the_inverse_takes_the_fixed_labels_to_the_moving_ones(run, read_table, files, tmp_path, inverse, most_mm):
    run("inference.json", output_dir=str(tmp_path), inverse=inverse, **files, **SMALL)

    fixed, moving = (sitk.ReadImage(files[f"{side}_label"]) for side in ("fixed", "moving"))
    field = sitk.ReadImage(str(tmp_path / "fixed__moving" / "inverse_field.nii.gz"), sitk.sitkVectorFloat64)
    assert field.GetSize() == moving.GetSize()
    back = sitk.Resample(fixed, moving, sitk.DisplacementFieldTransform(field), sitk.sitkNearestNeighbor)
    before = sitk.Resample(fixed, moving, sitk.Transform(), sitk.sitkNearestNeighbor)
    truth, back, before = (sitk.GetArrayFromImage(image) for image in (moving, back, before))
    assert mean_dice(back, truth) > mean_dice(before, truth) + 0.1
    (row,) = read_table(tmp_path / "metrics.csv")
    assert row["error"] == ""
    assert 0 < float(row["inverse_consistency_mm"]) < most_mm  # voxels of 4 x 4 x 6 mm
    assert bool(row.get("inverse_residual_voxel")) == (inverse == "numeric")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inverse_consistency_mm"] == pytest.approx(float(row["inverse_consistency_mm"]))


def test_a_pair_whose_field_folds_goes_without_inverse(run, read_table, files, tmp_path):
    wild = {**SMALL, "network_def#refiner#regularization": 0.001, "network_def#refiner#smooth_widths": []}

    run("inference.json", output_dir=str(tmp_path), inverse="numeric", **files, **wild)

    (row,) = read_table(tmp_path / "metrics.csv")
    assert float(row["folding_percent"]) > 0
    assert row["error"] == row["inverse_consistency_mm"] == ""
    written = {path.name for path in (tmp_path / "fixed__moving").iterdir()}
    assert "field.nii.gz" in written
    assert "inverse_field.nii.gz" not in written
    assert json.loads((tmp_path / "summary.json").read_text())["inverse_consistency_mm"] is None


def test_the_uncertainty_is_about_as_large_as_the_errors_and_larger_where_they_are(run, files, tmp_path):
    run("inference.json", output_dir=str(tmp_path), uncertainty=True, inverse="symmetric", **files)

    folder, truth = tmp_path / "fixed__moving", phantom_pair(**PHANTOM)
    assert {"inverse_field.nii.gz", "uncertainty.nii.gz"} <= {path.name for path in folder.iterdir()}
    uncertainty, ddf = (nib.load(folder / f"{name}.nii.gz") for name in ("uncertainty", "ddf"))
    np.testing.assert_allclose(uncertainty.affine, ddf.affine, atol=1e-4)
    assert uncertainty.shape == ddf.shape[:3]
    predicted = uncertainty.get_fdata()
    error = np.moveaxis(ddf.get_fdata(), -1, 0) - truth["true_ddf"].numpy()
    error = np.sqrt(np.einsum("c,cijk->ijk", np.square([4.0, 4, 6]), error**2))  # mm
    body = truth["fixed_body"][0].numpy() > 0
    assert 0.5 < np.sqrt(np.mean(error[body] ** 2) / np.mean(predicted[body] ** 2)) < 2
    assert scipy.stats.spearmanr(predicted[body], error[body]).statistic > 0.15


@pytest.mark.parametrize("config", ["labels.json", "images_and_labels.json"])
def test_label_maps_serve_as_features(run, read_table, files, tmp_path, config):
    run("inference.json", "evaluate.json", config, output_dir=str(tmp_path), **files, **SMALL)

    (row,) = read_table(tmp_path / "metrics.csv")
    assert row["error"] == ""
    assert float(row["dice"]) > float(row["dice_before"]) + 10


@pytest.mark.parametrize(
    "settings",
    ["search_only.json", "same_modality.json", "same_modality_fine.json", "HippocampusMR.json", "LPBA40.json"],
)
def test_settings_merge_behind_inference_and_register(run, read_table, files, tmp_path, settings):
    run("inference.json", "evaluate.json", settings, output_dir=str(tmp_path), **files, **SMALL)

    (row,) = read_table(tmp_path / "metrics.csv")
    assert row["error"] == ""
    assert float(row["dice"]) > float(row["dice_before"]) + 10


def test_one_bad_pair_is_recorded_while_the_others_go_on(run, read_table, files, tmp_path):
    pairs = [
        {"pair": "good", "fixed": files["fixed"], "moving": files["moving"]},
        {"pair": "absent", "fixed": files["fixed"], "moving": str(tmp_path / "absent.nii.gz")},
        {"pair": "other_good", "fixed": files["fixed"], "moving": files["fixed"]},
    ]

    with pytest.raises(SystemExit, match="1 of 3 pairs failed"):
        run("inference.json", output_dir=str(tmp_path / "out"), pairs=pairs, **SMALL)

    errors = {row["pair"]: row["error"] for row in read_table(tmp_path / "out" / "metrics.csv")}
    assert errors["good"] == errors["other_good"] == ""
    assert "absent.nii.gz" in errors["absent"]
    assert not (tmp_path / "out" / "absent").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failed"] == 1


def _image(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([4.0, 4.0, 6.0, 1.0]) if affine is None else affine), path)
    return str(path)


def _noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def _with(values: np.ndarray, at: float) -> np.ndarray:
    values[1, 1, 1] = at
    return values


def _with_header(path: Path, affine: np.ndarray, voxel_size: float) -> str:
    """An image whose header says what no library would write: a singular affine, or a voxel size of 0."""
    header = nib.Nifti1Header()
    header.set_sform(affine, code=1)
    image = nib.Nifti1Image(_noise(40, 40, 40), None, header)
    content = bytearray(image.to_bytes())
    content[88:92] = np.float32(voxel_size).tobytes()
    content[280:328] = affine[:3].astype(np.float32).tobytes()
    content[254:256] = np.int16(1).tobytes()
    path.write_bytes(content)
    return str(path)


SINGULAR = np.array([[4.0, 4.0, 0.0, 0.0], [4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 6.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
BAD_INPUTS = {
    "missing file": (lambda p: {"moving": str(p / "none.nii.gz")}, "none.nii.gz"),
    "unreadable file": (
        lambda p: {"moving": str((p / "text.nii.gz").write_text("x") and p / "text.nii.gz")},
        "text.nii.gz",
    ),
    "2-D image": (lambda p: {"moving": _image(p / "flat.nii.gz", _noise(40, 40))}, r"2-D|3-D|axes|dimension"),
    "4-D image": (lambda p: {"moving": _image(p / "series.nii.gz", _noise(40, 40, 20, 3))}, r"4-D|3-D|axes|dimension"),
    "NaN": (lambda p: {"moving": _image(p / "nan.nii.gz", _with(_noise(40, 40, 20), np.nan))}, r"NaN|finite"),
    "infinite": (lambda p: {"fixed": _image(p / "inf.nii.gz", _with(_noise(40, 40, 20), np.inf))}, r"NaN|finite"),
    "constant": (lambda p: {"fixed": _image(p / "flat.nii.gz", np.ones((40, 40, 20), np.float32))}, "constant"),
    "zero spacing": (
        lambda p: {"moving": _with_header(p / "zero.nii", np.diag([4.0, 4.0, 0.0, 1.0]), 0.0)},
        r"voxel size|spacing|affine",
    ),
    "singular affine": (
        lambda p: {"moving": _with_header(p / "singular.nii", SINGULAR, 6.0)},
        r"voxel size|spacing|affine|singular",
    ),
    "no overlap": (
        lambda p: {"moving": _image(p / "far.nii.gz", _noise(40, 40, 20), _far()), "initial": "headers"},
        "overlap",
    ),
    "fractional label": (
        lambda p: {"fixed_label": _image(p / "soft.nii.gz", 0.5 * np.ones((48, 40, 32), np.float32), None)},
        r"whole|integer",
    ),
    "empty mask": (lambda p: {"fixed_mask": _image(p / "empty.nii.gz", np.zeros((48, 40, 32), np.uint8))}, r"mask"),
    "mask of another grid": (
        lambda p: {"fixed_mask": _image(p / "other.nii.gz", np.ones((5, 6, 7), np.uint8))},
        "voxels, its image",
    ),
    "points outside": (lambda p: {"fixed_points": _points(p), "moving_points": _points(p)}, "outside"),
    "smaller than the search": (
        lambda p: {"fixed": _image(p / "a.nii.gz", _noise(5, 6, 5)), "moving": _image(p / "b.nii.gz", _noise(5, 6, 5))},
        "half_width",
    ),
}


def _far() -> np.ndarray:
    affine = np.diag([4.0, 4.0, 6.0, 1.0])
    affine[:3, 3] = 1e4
    return affine


def _points(folder: Path) -> str:
    (folder / "points.csv").write_text("9000,0,0\n0,0,0\n")
    return str(folder / "points.csv")


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_input_gets_one_line_and_leaves_nothing_half_written(run, read_table, files, tmp_path, what):
    make, message = BAD_INPUTS[what]
    inputs = {"fixed": files["fixed"], "moving": files["moving"], **make(tmp_path)}

    with pytest.raises(SystemExit, match="1 of 1 pairs failed"):
        run("inference.json", output_dir=str(tmp_path / "out"), **inputs, **SMALL)

    (row,) = read_table(tmp_path / "out" / "metrics.csv")
    assert row["error"]
    assert "\n" not in row["error"]
    assert re.search(message, row["error"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metrics.csv", "summary.json"]


def test_an_output_folder_that_cannot_be_written_stops_the_run_at_once(run, files, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(SystemExit, match="cannot write"):
        run("inference.json", output_dir=str(tmp_path / "file" / "out"), **files)


def test_a_data_set_that_names_no_pairs_stops_the_run_with_one_line(run, tmp_path):
    (tmp_path / "Task_dataset.json").write_text('{"name": "Task"}')

    with pytest.raises(SystemExit, match="registration_val"):
        run("inference.json", output_dir=str(tmp_path / "out"), dataset_dir=str(tmp_path))


def test_the_command_line_runs_from_any_folder_and_tells_of_failure_by_its_status(bundle, files, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--bundle_root", str(bundle), "--output_dir", "out"]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--fixed", files["fixed"]]
    command += ["--network_def#refiner#iterations", "5", "--network_def#estimator#half_width", "2"]

    good = subprocess.run([*command, "--moving", files["moving"]], cwd=tmp_path, capture_output=True, text=True)
    bad = subprocess.run([*command, "--moving", "absent.mha"], cwd=tmp_path, capture_output=True, text=True)

    assert good.returncode == 0, good.stderr
    assert (tmp_path / "out" / "fixed__moving" / "warped.nii.gz").exists()
    assert bad.returncode == 1
    assert "absent.mha" in bad.stdout + bad.stderr
    assert "Traceback" not in bad.stdout + bad.stderr


def test_training_pairs_choose_settings_that_inference_takes(run, bundle, tmp_path):
    settings = tmp_path / "settings.json"
    overrides = {"study_file": str(tmp_path / "study.db"), "settings_file": str(settings), "output_dir": str(tmp_path)}
    choices = {"network_def#refiner#regularization": [0.5, 2.0], "network_def#refiner#iterations": [3, 6]}
    pair = phantom_pair(size=(32, 28, 24), spacing=(6, 6, 8), max_displacement_mm=12)

    run("train.json", kind="train", max_trials=3, pairs=[pair], search=choices, **overrides)

    chosen = json.loads(settings.read_text())
    assert chosen["self_configuration"]["trials"] == 3
    assert all(chosen[key] in values for key, values in choices.items())
    network = ConfigWorkflow(
        config_file=[str(bundle / "configs" / "inference.json"), str(settings)],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
    ).parser.get_parsed_content("network_def")
    assert network.refiners[0].iterations == chosen["network_def#refiner#iterations"]


def test_training_on_a_file_that_is_missing_ends_with_one_line(run, files, tmp_path):
    pair = {"pair": "absent", "fixed": files["fixed"], "moving": str(tmp_path / "absent.nii.gz")}
    overrides = {"study_file": str(tmp_path / "study.db"), "settings_file": str(tmp_path / "settings.json")}

    with pytest.raises(SystemExit, match=r"error: .*absent.nii.gz"):
        run("train.json", kind="train", pairs=[pair], output_dir=str(tmp_path), **overrides)

    assert not (tmp_path / "settings.json").exists()


def test_three_trials_on_three_real_training_pairs_choose_settings(run, data_dir, tmp_path):
    overrides = {"study_file": str(tmp_path / "study.db"), "settings_file": str(tmp_path / "HippocampusMR.json")}
    inputs = {"dataset_dir": str(data_dir / "HippocampusMR"), "task": "HippocampusMR", "num_pairs": 3, "max_trials": 3}
    quick = {"network_def#refiner#iterations": [5, 10], "network_def#estimator#half_width": [1, 2]}

    run("train.json", kind="train", output_dir=str(tmp_path), search=quick, **inputs, **overrides)

    found = json.loads((tmp_path / "HippocampusMR.json").read_text())
    assert found["self_configuration"]["trials"] == 3
    assert 40 < found["self_configuration"]["training_pairs"]["dice"] < 95


@pytest.mark.parametrize(
    ("configs", "kind"),
    [(["inference.json"], "infer"), (["inference.json", "evaluate.json"], "infer"), (["train.json"], "train")],
)
def test_every_property_that_monai_asks_for_is_there(workflow, configs, kind):
    checked = workflow(*configs, kind=kind)
    checked.initialize()

    assert not checked.check_properties()
