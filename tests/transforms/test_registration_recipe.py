# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from monai_reg_ext.transforms import RegistrationRecipe

CONFIG = {
    "imports": ["$import torch"],
    "bundle_root": "elsewhere",
    "device": "$torch.device('cpu')",
    "axis": 0,
    "network_def": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": 2,
        "out_channels": 3,
        "kernel_size": 1,
        "bias": False,
    },
    "network": "$@network_def.to(@device)",
    "preparation": "$lambda pair: {**pair, 'image': torch.cat([pair['moving'], pair['fixed']])}",
    "completion": "$lambda item: {**item, 'pred': item['pred'].roll(1 + @axis, 0)}",
}


class Doubling(nn.Module):
    """Image times two, and the masks it is given."""

    def __init__(self, given: dict) -> None:
        super().__init__()
        self.given = given

    def forward(self, image, moving_mask=None, fixed_mask=None):
        self.given |= {"training": self.training, "image": image, "moving_mask": moving_mask, "fixed_mask": fixed_mask}
        return 2 * image


class WithoutMasks(nn.Module):
    def forward(self, image):
        return 2 * image


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A network that weighs the channels of the image with known weights."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    write(tmp_path, CONFIG)
    (tmp_path / "models").mkdir()
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [10.0, 100.0]]).reshape(3, 2, 1, 1, 1)
    torch.save({"weight": weight}, tmp_path / "models" / "model.pt")
    return tmp_path


def write(bundle: Path, config: dict, name: str = "inference") -> None:
    (bundle / "configs" / f"{name}.json").write_text(json.dumps(config))


def pair() -> dict[str, torch.Tensor]:
    return {"moving": torch.full((1, 2, 3, 4), 3.0), "fixed": torch.full((1, 2, 3, 4), 5.0)}


def channels(pred: torch.Tensor) -> list[float]:
    assert (pred == pred[:, :1, :1, :1]).all()
    return pred[:, 0, 0, 0].tolist()


def test_a_bundle_prepares_predicts_with_its_weights_and_completes(bundle):
    item = RegistrationRecipe.from_bundle(bundle)(pair())

    assert channels(item["pred"]) == [530, 3, 5]  # [moving, fixed, 10 moving + 100 fixed], rolled by 1
    assert not item["pred"].requires_grad
    assert set(item) == {"moving", "fixed", "image", "pred"}


def test_overrides_and_settings_change_the_config_and_overrides_go_last(bundle):
    write(bundle, {"axis": 1}, "rolled")
    write(bundle, {"axis": 0}, "flat")

    assert channels(RegistrationRecipe.from_bundle(bundle, axis=1)(pair())["pred"]) == [5, 530, 3]
    for settings in ("rolled", "rolled.json", bundle / "configs" / "rolled.json", ["flat", "rolled"]):
        assert channels(RegistrationRecipe.from_bundle(bundle, settings)(pair())["pred"]) == [5, 530, 3]
    assert channels(RegistrationRecipe.from_bundle(bundle, "rolled", axis=0)(pair())["pred"]) == [530, 3, 5]


def test_an_override_may_name_an_argument_that_the_config_leaves_to_its_default(bundle):
    recipe = RegistrationRecipe.from_bundle(bundle, **{"network_def#padding_mode": "circular"})

    assert recipe.network.padding_mode == "circular"


def test_the_bundle_knows_its_own_folder(bundle):
    write(bundle, {**CONFIG, "completion": "$lambda item: {**item, 'root': @bundle_root}"})

    assert RegistrationRecipe.from_bundle(bundle)(pair())["root"] == str(bundle.resolve())


def test_the_network_works_on_the_device_asked_for_or_on_that_of_the_bundle(bundle):
    assert RegistrationRecipe.from_bundle(bundle).device == torch.device("cpu")
    assert RegistrationRecipe.from_bundle(bundle, device="meta").device == torch.device("meta")


def test_a_network_gets_the_masks_that_its_forward_takes():
    given = {}
    masks = {"moving_mask_working": MetaTensor(torch.ones(1, 2, 3, 4)), "fixed_mask_working": torch.zeros(1, 2, 3, 4)}
    network = Doubling(given)

    def prepare(item):
        return {**item, "image": MetaTensor(torch.cat([item["moving"], item["fixed"]])), **masks}

    pred = RegistrationRecipe(prepare, network, dict)(pair())["pred"]

    assert channels(pred) == [6, 10]
    assert type(given["image"]) is type(given["moving_mask"]) is torch.Tensor
    assert given["moving_mask"].shape == (1, 1, 2, 3, 4)
    assert given["moving_mask"].all()
    assert not given["fixed_mask"].any()
    assert not given["training"]
    assert network.training
    assert channels(RegistrationRecipe(prepare, WithoutMasks(), dict)(pair())["pred"]) == [6, 10]


def test_weights_that_are_missing_are_named(bundle):
    (bundle / "models" / "model.pt").unlink()

    with pytest.raises(FileNotFoundError, match=r"has weights, but there is no .*model\.pt"):
        RegistrationRecipe.from_bundle(bundle)


def test_weights_that_the_config_loads_itself_are_kept(bundle):
    other = {"weight": torch.zeros(3, 2, 1, 1, 1)}
    torch.save(other, bundle / "trained.pt")
    network = "$monai_reg_ext.apps.load_weights(@network_def, @weights)"
    config = {"weights": "$@bundle_root + '/models/model.pt'", "network": network}
    write(bundle, {**CONFIG, "imports": [*CONFIG["imports"], "$import monai_reg_ext"], **config})

    assert channels(RegistrationRecipe.from_bundle(bundle)(pair())["pred"]) == [530, 3, 5]
    recipe = RegistrationRecipe.from_bundle(bundle, weights=str(bundle / "trained.pt"))
    assert channels(recipe(pair())["pred"]) == [0, 0, 0]
    (bundle / "models" / "model.pt").unlink()
    assert RegistrationRecipe.from_bundle(bundle, weights=str(bundle / "trained.pt"))


def test_an_id_that_does_not_exist_is_refused_with_those_that_do(bundle):
    with pytest.raises(ValueError, match=r"no id axes.*there are axis, bundle_root, completion"):
        RegistrationRecipe.from_bundle(bundle, axes=1)
    with pytest.raises(ValueError, match=re.escape("no id net#kernel_size")):
        RegistrationRecipe.from_bundle(bundle, **{"net#kernel_size": 3})


def test_unknown_settings_are_refused_with_those_that_exist(bundle):
    write(bundle, {}, "rolled")

    with pytest.raises(FileNotFoundError, match=r"no settings 'roled'.*rolled\.json"):
        RegistrationRecipe.from_bundle(bundle, "roled")


@pytest.mark.parametrize("part", ["preparation", "network", "completion"])
def test_a_bundle_that_cannot_register_a_pair_is_refused_with_what_it_lacks(bundle, part):
    write(bundle, {key: value for key, value in CONFIG.items() if key != part})

    with pytest.raises(ValueError, match=rf"has no {part}"):
        RegistrationRecipe.from_bundle(bundle)


def test_a_bundle_without_inference_is_refused(bundle):
    (bundle / "configs" / "inference.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"no inference\.json"):
        RegistrationRecipe.from_bundle(bundle)
