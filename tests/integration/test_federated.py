# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

QUICKLY = {
    "pairs_per_epoch": 2,
    "val_interval": 1,
    "val_cases": 2,
    "amp": False,
    "tensorboard": False,
    "pictures": False,
}
# options that make each network small, and whether it compares predicted label maps
BUNDLES = {
    "fused_convex": ({"learning_rate": 0.01, "network_def#estimator#half_width": 2}, True),
    "gauss_newton": ({"first_iterations": 1, "network_def#estimator#iterations": 2}, True),
    "pdd_net": (
        {
            "channels": 4,
            "network_def#estimator#points": [7, 6, 8],
            "network_def#estimator#labels": 5,
            "network_def#estimator#reach": 6,
        },
        False,
    ),
}


@pytest.mark.parametrize("name", BUNDLES)
def test_a_client_of_a_federation_trains_the_weights_it_gets_and_measures_them(bundles_dir, dataset, tmp_path, name):
    options, predicted = BUNDLES[name]
    options = {**QUICKLY, **options, "dataset_dir": str(dataset), "output_dir": str(tmp_path)}
    if predicted:
        options["predictions_dir"] = str(dataset / "labelsTr")
    root = {"bundle_root": str(bundles_dir / name)}
    client = MonaiAlgo(name, send_weight_diff=False, train_kwargs={**options, **root}, eval_kwargs={**options, **root})
    client.initialize({ExtraItems.CLIENT_NAME: "clinic", ExtraItems.APP_ROOT: str(bundles_dir)})
    start = {key: value.clone() for key, value in client.get_weights().weights.items()}
    sent = {key: value.numpy() for key, value in start.items()}

    before = dict(client.evaluate(ExchangeObject(weights=sent)).metrics)
    client.train(ExchangeObject(weights=sent))
    answer = client.get_weights()
    after = client.evaluate(ExchangeObject(weights=answer.weights)).metrics
    client.finalize()

    assert answer.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 2
    assert answer.weights.keys() == start.keys()
    assert any(not torch.equal(answer.weights[key], value) for key, value in start.items())
    assert 0 < before["dice"] <= 100
    assert {"dice", "hd95", "sdlogj", "folding_percent"} <= after.keys()
    assert after != before
