# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_reg_ext.apps import load_weights, save_weights


def network(channels: int = 3) -> nn.Module:
    return nn.ModuleDict({"features": nn.Conv3d(channels, 4, 1), "fusion": nn.Linear(4, 2)})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.pt"
    trained = network()
    torch.save(trained.state_dict(), path)
    return path, trained


def refusal(*args, **kwargs) -> str:
    with pytest.raises(SystemExit) as error:
        load_weights(*args, **kwargs)
    return str(error.value)


def test_the_network_has_the_weights_of_the_file(saved):
    path, trained = saved

    loaded = load_weights(network(), path)

    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_part_finds_its_weights_in_those_of_the_whole(saved):
    path, trained = saved

    loaded = load_weights(nn.Linear(4, 2), path, part="fusion")

    assert torch.equal(loaded.weight, trained["fusion"].weight)


def test_weights_that_are_not_used_may_be_left_out_by_name(saved):
    path, trained = saved
    part = nn.ModuleDict({"fusion": nn.Linear(4, 2)})

    assert torch.equal(load_weights(part, path, unused="features.")["fusion"].bias, trained["fusion"].bias)


def test_a_part_that_is_not_used_may_be_of_another_size_and_stays_as_it_is(saved):
    path, trained = saved
    other = network()
    other["fusion"] = nn.Linear(4, 7)
    before = other["fusion"].weight.clone()

    load_weights(other, path, unused="fusion")

    assert torch.equal(other["features"].weight, trained["features"].weight)
    assert torch.equal(other["fusion"].weight, before)


def test_parts_saved_together_are_the_whole(tmp_path):
    whole = network()
    torch.save(whole["features"].state_dict(), tmp_path / "features.pt")

    save_weights(tmp_path / "model.pt", {"features": tmp_path / "features.pt", "fusion": whole["fusion"]})

    loaded = load_weights(network(), tmp_path / "model.pt").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in whole.state_dict().items())


def test_the_whole_has_no_prefix(tmp_path):
    save_weights(tmp_path / "model.pt", {"": network()})

    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() == network().state_dict().keys()


def test_what_two_parts_share_is_in_the_file_once(saved):
    path, trained = saved
    layer = nn.Linear(4, 2)
    sharing = nn.ModuleDict({**network(), "fusion": layer, "again": nn.Sequential(layer)})

    loaded = load_weights(sharing, path)

    assert torch.equal(loaded["again"][0].weight, trained["fusion"].weight)


def test_a_part_of_its_own_does_not_take_the_weights_of_another(saved):
    apart = nn.ModuleDict({**network(), "again": nn.Sequential(nn.Linear(4, 2))})

    assert "has no again.0.weight" in refusal(apart, saved[0])


def test_a_network_that_shares_a_part_reads_what_it_has_saved(tmp_path):
    def sharing() -> nn.Module:
        layer = nn.Linear(4, 2)
        return nn.ModuleDict({"fusion": layer, "again": nn.Sequential(layer)})

    whole = sharing()
    save_weights(tmp_path / "model.pt", {"": whole})

    assert torch.equal(load_weights(sharing(), tmp_path / "model.pt")["again"][0].weight, whole["fusion"].weight)


def test_weights_for_another_number_of_channels_are_refused_with_both_shapes(saved):
    message = refusal(network(channels=5), saved[0])

    assert message.startswith("error: ")
    assert "\n" not in message
    for part in (str(saved[0]), "features.weight", "(4, 3, 1, 1, 1)", "(4, 5, 1, 1, 1)"):
        assert part in message


def test_missing_and_surplus_weights_are_named(saved):
    with_norm = nn.ModuleDict({**network(), "norm": nn.BatchNorm3d(4)})

    assert "has no norm.weight, 5 weights in all are missing" in refusal(with_norm, saved[0])
    part = nn.ModuleDict({"fusion": nn.Linear(4, 2)})
    assert "has features.weight, which the network has not, 2 weights in all" in refusal(part, saved[0])


def test_an_absent_file_and_one_that_holds_something_else_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pt")

    assert "absent.pt cannot be read" in refusal(network(), tmp_path / "absent.pt")
    assert "text.pt cannot be read" in refusal(network(), tmp_path / "text.pt")
    assert "list.pt: holds no state dict" in refusal(network(), tmp_path / "list.pt")
