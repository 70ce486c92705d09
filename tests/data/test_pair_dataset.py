# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad

from monai_reg_ext.data import PairDataset

PAIRS = [
    {"pair": f"a__{name}", "fixed": 1.0, "moving": float(value)} for name, value in (("b", 2), ("c", -1), ("d", 3))
]


def _positive(value):
    if value < 0:
        raise ValueError(f"moving must be positive, got {value}.")
    return torch.tensor(value)


TRANSFORM = Compose([Compose([Lambdad("moving", _positive)])])  # nested: two layers of MONAI's wrapping


def test_a_pair_that_fails_becomes_a_record_and_the_others_go_on(caplog):
    dataset = PairDataset(PAIRS, TRANSFORM, on_error="record")

    with caplog.at_level(logging.DEBUG, logger="monai_reg_ext"):
        items = [dataset[index] for index in range(len(dataset))]

    assert items[1] == {"pair": "a__c", "error": "moving must be positive, got -1.0."}
    assert [float(items[index]["moving"]) for index in (0, 2)] == [2, 3]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in errors] == [
        "pair a__c cannot be prepared: moving must be positive, got -1.0."
    ]
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.levelno for record in tracebacks] == [logging.DEBUG]


def test_without_recording_the_first_failure_stops():
    dataset = PairDataset(PAIRS, TRANSFORM)

    with pytest.raises(RuntimeError) as caught:
        dataset[1]

    assert dataset[0]["pair"] == "a__b"
    assert "applying transform" in str(caught.value)


def test_an_error_of_another_kind_is_recorded_with_its_kind():
    dataset = PairDataset(PAIRS, Lambdad("fixed_label", abs), on_error="record")

    assert dataset[0]["error"].startswith("KeyError: ")


def test_records_pass_through_a_loader_with_workers():
    loader = DataLoader(PairDataset(PAIRS, TRANSFORM, on_error="record"), batch_size=1, num_workers=1)

    batches = list(loader)

    assert [batch["pair"] for batch in batches] == [["a__b"], ["a__c"], ["a__d"]]
    assert batches[1]["error"] == ["moving must be positive, got -1.0."]


def test_data_that_are_no_pairs_and_unknown_error_modes_are_refused():
    with pytest.raises(ValueError, match=r"data\[1\] .* got \['image', 'label'\].*RandomPairDataset"):
        PairDataset([PAIRS[0], {"image": "a", "label": "b"}])
    with pytest.raises(ValueError, match=r"data\[0\] .* got str"):
        PairDataset(["a.nii.gz"])
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'record', got 'ignore'"):
        PairDataset(PAIRS, on_error="ignore")
