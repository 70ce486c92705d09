# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""The real server, in the environment whose interpreter ``MONAI_REG_LABEL_PYTHON`` names; ``-s`` shows what is said."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_reg_ext.apps.commands import label_app

PYTHON = os.environ.get("MONAI_REG_LABEL_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="MONAI_REG_LABEL_PYTHON names no interpreter of a MONAI Label environment"),
]

BUNDLES = {path.name: (path / "models").is_dir() for path in sorted((Path(__file__).parents[3] / "bundles").iterdir())}
SERVED = [name for name, has_weights in BUNDLES.items() if has_weights]
UNTRAINED = [name for name in BUNDLES if name not in SERVED]
KINDS = {"warped_label": (np.uint8, 3), "warped": (np.float32, 3), "ddf": (np.float32, 4), "field": (np.float32, 5)}
SHORT = {"max_epochs": 1, "pairs_per_epoch": 1, "val_interval": 1, "tensorboard": False, "pictures": False}


def _label_server():
    path = Path(__file__).with_name("label_server.py")
    spec = importlib.util.spec_from_file_location("label_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LabelServer


@pytest.fixture(scope="module")
def store(studies, tmp_path_factory) -> Path:
    return Path(shutil.copytree(studies, tmp_path_factory.mktemp("store") / "images"))


@pytest.fixture(scope="module")
def server(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    label_app(str(folder / "app"))
    conf = {"atlas": "case_2", "labels": "lung,heart,liver,spleen,spine"}
    with _label_server()(PYTHON, folder / "app", store, folder / "server.log", **conf) as running:
        yield running


@pytest.fixture
def read(tmp_path):
    def read(body: bytes) -> nib.Nifti1Image:
        path = tmp_path / "result.nii.gz"
        path.write_bytes(body)
        return nib.load(path)

    return read


def test_bundles_with_weights_are_listed_as_segmentations_and_the_others_named(server):
    info = server.get("/info/").json

    assert sorted(info["models"]) == sorted(SERVED)
    for model in info["models"].values():
        assert model["type"] == "segmentation"
        assert model["config"]["moving"] == "case_2"
        assert model["config"]["output_kind"][0] == "warped_label"
        assert model["labels"] == {"lung": 1, "heart": 2, "liver": 3, "spleen": 4, "spine": 5}
    told = f"Without weights, hence not served until trained: {', '.join(UNTRAINED)}."
    assert (told in info["description"]) == bool(UNTRAINED)
    assert sorted(info["trainers"]) == ["fused_convex", "gauss_newton", "pdd_net"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bundle", SERVED)
def test_a_result_lies_on_the_fixed_grid_in_its_own_form(server, store, read, bundle, kind):
    answer = server.infer(bundle, {"moving": "case_3", "output_kind": kind}, image="case_1", output="image")

    assert answer.status == 200
    fixed, result, (dtype, axes) = nib.load(store / "case_1.nii.gz"), read(answer.body), KINDS[kind]
    assert result.get_data_dtype() == dtype
    assert result.shape[:3] == fixed.shape
    assert result.ndim == axes
    np.testing.assert_allclose(result.affine, fixed.affine, atol=1e-4)


@pytest.mark.parametrize("bundle", SERVED)
def test_one_click_brings_the_atlas_and_json_or_both(server, read, bundle):
    facts = server.infer(bundle, image="case_1", output="json").json
    both = server.infer(bundle, image="case_1").parts

    assert facts["output_kind"] == "warped_label"
    assert list(facts["moving"]) == ["case_2"]
    assert facts["latencies"]["total"] > 0
    assert json.loads(both["params"])["moving"] == facts["moving"]
    assert set(np.unique(read(both["image"]).dataobj)) <= {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("bundle", SERVED)
def test_a_label_map_is_stored_under_the_fixed_image_with_its_tag(server, read, bundle):
    params = {"moving": "case_3", "save_label": True, "label_tag": f"registered_{bundle}"}
    answer = server.infer(bundle, params, image="case_1", output="image")

    stored = server.get("/datastore/label", label="case_1", tag=f"registered_{bundle}")

    assert (answer.status, stored.status) == (200, 200)
    np.testing.assert_array_equal(read(stored.body).get_fdata(), read(answer.body).get_fdata())


def test_an_image_may_come_with_the_request(server, store, read):
    known = server.infer("convex_adam", {"moving": "case_3"}, image="case_1", output="image")
    brought = server.infer_upload("convex_adam", store / "case_1.nii.gz", {"moving": "case_3"}, output="image")

    assert brought.status == 200
    np.testing.assert_array_equal(read(brought.body).get_fdata(), read(known.body).get_fdata())


def test_other_files_of_the_machine_are_no_images_of_a_request(server, store):
    for image in (str(store / "case_1.nii.gz"), str(store / "labels" / "final" / "case_1.nii.gz"), "../case_1"):
        assert server.infer("convex_adam", image=image, output="image").status == 404


def test_clients_do_not_reach_the_packages_own_weights(server):
    assert server.get("/model/fused_convex").status == 404


@pytest.mark.parametrize(
    ("model", "image", "params", "status", "message"),
    [
        ("convex_adam", "case_9", {}, 404, "no fixed image 'case_9' in the datastore; its ids are like case_1"),
        ("convex_adam", "case_1", {"moving": "case_9"}, 404, "no moving image 'case_9'"),
        ("convex_adam", "case_1", {"moving": "case_5"}, 404, "'case_5' has no label with the tag 'final'"),
        ("convex_adam", "case_1", {"output_kind": "picture"}, 400, "output_kind must be one of"),
        ("convex_adam", "case_1", {"output_kind": "ddf", "save_label": True}, 400, "save_label stores label maps"),
        ("convex_adam", "case_1", {"spacing": "$__import__('os')"}, 400, "spacing must be a number or a single word"),
        *((name, "case_1", {}, 400, f"{name} has no weights yet, so it is not served") for name in UNTRAINED),
        ("convexadam", "case_1", {}, 404, "no model 'convexadam': there are convex_adam"),
    ],
)
def test_a_wrong_request_gets_a_status_and_one_line(server, model, image, params, status, message):
    answer = server.infer(model, params, image=image, output="image")

    assert answer.status == status
    assert message in answer.json["detail"]


def test_two_requests_at_once_get_the_results_that_each_gets_alone(server, read):
    asked = [("convex_adam", "case_3"), ("gauss_newton", "case_4")]

    def ask(request):
        return server.infer(request[0], {"moving": request[1], "output_kind": "ddf"}, image="case_1", output="image")

    with ThreadPoolExecutor(2) as both:
        together = list(both.map(ask, asked))

    for request, answer in zip(asked, together, strict=True):
        assert answer.status == 200
        field = read(answer.body).get_fdata()
        np.testing.assert_allclose(field, read(ask(request).body).get_fdata(), atol=1e-3)


def test_a_batch_labels_every_unlabelled_image_by_the_atlas(server, store):
    params = {"label_tag": "from_atlas"}
    state = server.run_task("/batch/infer/convex_adam", "/batch/infer", params, images="unlabeled")

    assert state["status"] == "DONE"
    assert [path.name for path in (store / "labels" / "from_atlas").iterdir()] == ["case_5.nii.gz"]


def test_a_batch_goes_on_after_a_bad_image_and_tells_at_the_end(server, store):
    broken = store / "case_0.nii.gz"
    broken.write_bytes(b"no image")
    while "case_0" not in server.get("/datastore/", output="all").json["objects"]:
        pass
    params = {"moving": "case_2,case_3", "fusion": "local", "label_tag": "fused"}
    state = server.run_task("/batch/infer/gauss_newton", "/batch/infer", params, images="all")
    broken.unlink()

    assert state["status"] == "ERROR"
    assert "1 of 4 images failed, the others are stored. case_0: " in state["details"][-1]
    stored = sorted(path.name for path in (store / "labels" / "fused").iterdir())
    assert stored == ["case_1.nii.gz", "case_4.nii.gz", "case_5.nii.gz"]


def test_what_is_trained_on_the_datastore_is_served_from_then_on(server, read):
    state = server.run_task("/train/pdd_net", "/train/", SHORT)

    answer = server.infer("pdd_net", {"moving": "case_3"}, image="case_1", output="image")

    assert state["status"] == "DONE"
    assert "pdd_net" in server.get("/info/").json["models"]
    assert answer.status == 200
    assert read(answer.body).shape == (40, 34, 28)
