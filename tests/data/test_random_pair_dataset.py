# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from ignite.engine import Engine, Events
from monai.data import DataLoader

from monai_reg_ext.data import RandomPairDataset

SUBJECTS = [{"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz"} for name in "abcdef"]


def _names(dataset):
    return [item["pair"] for item in dataset]


def test_an_epoch_holds_pairs_of_different_subjects_each_with_its_own_label():
    dataset = RandomPairDataset(SUBJECTS, length=300)

    pairs = [dataset[index] for index in range(len(dataset))]

    assert len(pairs) == 300
    for pair in pairs:
        assert pair["fixed"] != pair["moving"]
        assert pair["fixed_label"] == pair["fixed"].replace(".nii", "_label.nii")
        assert pair["moving_label"] == pair["moving"].replace(".nii", "_label.nii")
    # 30 ordered pairs, 10 expected of each: every one occurs in a fair draw (probability of a miss 1e-3)
    counts = Counter(pair["pair"] for pair in pairs)
    assert len(counts) == 30
    assert max(counts.values()) < 30


def test_the_same_seed_epoch_and_index_give_the_same_pair_whatever_else_was_drawn():
    first = RandomPairDataset(SUBJECTS, length=20, seed=3)
    second = RandomPairDataset(SUBJECTS, length=5, seed=3)
    second.set_epoch(1)
    _ = second[4], second[0]
    second.set_epoch(0)

    assert second[2]["pair"] == first[2]["pair"]
    assert first[-1]["pair"] == first[19]["pair"]
    assert _names(RandomPairDataset(SUBJECTS, 20, seed=4)) != _names(first)


def test_epochs_differ_and_can_be_repeated():
    dataset = RandomPairDataset(SUBJECTS, length=20)
    zeroth = _names(dataset)

    dataset.set_epoch(1)
    first = _names(dataset)
    dataset.set_epoch(0)

    assert first != zeroth
    assert _names(dataset) == zeroth


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_of_a_run_draws_its_own_pairs_even_in_workers_that_persist(workers):
    dataset = RandomPairDataset(SUBJECTS, length=6)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    seen = {}
    engine = Engine(lambda engine, batch: seen.setdefault(engine.state.epoch, []).extend(batch["pair"]))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: dataset.set_epoch(engine.state.epoch))

    engine.run(loader, max_epochs=3)

    for epoch, names in seen.items():
        dataset.set_epoch(epoch)
        assert names == _names(dataset)
    assert len({tuple(names) for names in seen.values()}) == 3


def test_only_subjects_of_one_group_are_joined():
    groups = dict(zip("abcdef", [0, 1, 0, 2, 1, 0], strict=True))

    dataset = RandomPairDataset(SUBJECTS, length=200, groups=list(groups.values()))

    # no partner for d
    expected = {(one, other) for one, other in permutations("abcef", 2) if groups[one] == groups[other]}
    assert {(pair["fixed"][0], pair["moving"][0]) for pair in dataset} == expected


def test_too_few_subjects_and_empty_epochs_are_refused():
    with pytest.raises(ValueError, match="two subjects at least, of one group, got 1 in 1"):
        RandomPairDataset(SUBJECTS[:1], length=3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        RandomPairDataset(SUBJECTS, length=0)
    with pytest.raises(ValueError, match="got 6 in 6 groups"):
        RandomPairDataset(SUBJECTS, length=3, groups=range(6))
    with pytest.raises(ValueError, match="each of the 6 subjects, got 2"):
        RandomPairDataset(SUBJECTS, length=3, groups=[0, 0])
