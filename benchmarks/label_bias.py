# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""What labels do to structures that no label names: the fused_convex bundle, trained with some of the classes only.

    python benchmarks/label_bias.py --data_dir DATA --task LPBA40 --output bias --spacing 2

trains segmentation and fusion with half of the classes (a seeded choice; the others count as background), unless
``--output`` holds the weights already, registers the validation pairs with MIND-SSC alone, the segmentation alone, both
side by side and both fused, by the same search, and prints the mean Dice of the classes that training has seen and of
those that it has not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
from accuracy import BUNDLES, bundle_config
from accuracy_methods import Method, benchmark_methods
from accuracy_pairs import benchmark_pairs
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from monai_reg_ext.apps import training_labels
from monai_reg_ext.data import PairDataset
from monai_reg_ext.metrics import compute_learn2reg_dice, compute_sdlogj
from monai_reg_ext.transforms import LoadPaird

CONFIGS = BUNDLES / "fused_convex" / "configs"
FEATURES = {
    "MIND-SSC": ("mind.json",),
    "semantic": ("semantic.json",),
    "concatenated": ("concatenated.json",),
    "fused": (),
}


def main(
    task: str,
    data_dir: str,
    output: str,
    unseen: Sequence[int] | str = "half",
    search_only: bool = True,
    limit: int | None = None,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    **overrides: Any,
) -> None:
    """Train without some classes, register the validation pairs, print seen and unseen Dice.

    Args:
        task: a Learn2Reg folder in ``data_dir``.
        data_dir: folder of the data sets.
        output: folder of the training.
        unseen: classes that training ignores; ``"half"`` draws half of them.
        search_only: without Adam.
        limit: at most so many pairs.
        seed: of the drawn classes and of the training.
        training: config ids of train.json.
        overrides: config ids that train.json and inference.json share, e.g. ``--spacing 2``.
    """
    labels = training_labels(Path(data_dir) / task)[1:]
    unseen = drawn_half(labels, seed) if unseen == "half" else sorted(unseen)
    seen = [label for label in labels if label not in unseen]
    print(f"{task}: {len(seen)} classes seen, not seen: {list(unseen)}", flush=True)
    weights = Path(output) / "model.pt"
    if not weights.is_file():
        train(Path(data_dir) / task, output, unseen, {"seed": seed, **overrides, **(training or {})})
    set_determinism(seed)
    options = {"weights": str(weights), "labels": [0, *seen], **overrides}
    methods = {"before": benchmark_methods(bundle_config("fused_convex", (), options))["before"]}
    for name, files in FEATURES.items():
        files = [*files, *(["search_only.json"] if search_only else [])]
        config = bundle_config("fused_convex", [str(CONFIGS / file) for file in files], options)
        methods[name] = benchmark_methods(config)["ours"]
    pairs = PairDataset(list(benchmark_pairs(task, Path(data_dir), limit=limit)), LoadPaird())
    print(table(measured(methods, pairs, seen, unseen)))


def drawn_half(labels: Sequence[int], seed: int) -> list[int]:
    """Half of the classes, rounded down, in ascending order."""
    return sorted(np.random.default_rng(seed).permutation(labels)[: len(labels) // 2].tolist())


def train(dataset_dir: Path, output: str, ignored: Sequence[int], options: dict[str, Any]) -> None:
    """The bundle's training, with classes that count as background."""
    workflow = ConfigWorkflow(
        str(CONFIGS / "train.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(CONFIGS.parent),
        dataset_dir=str(dataset_dir),
        output_dir=output,
        ignored=list(ignored),
        **options,
    )
    for stage in (workflow.initialize, workflow.run, workflow.finalize):
        stage()


def measured(
    methods: dict[str, Method], pairs: PairDataset, seen: Sequence[int], unseen: Sequence[int]
) -> dict[str, list[tuple[float, float, float]]]:
    """Per method and pair: mean Dice of seen and of unseen classes in percent, SDlogJ."""
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in methods}
    for pair in pairs:
        for name, method in methods.items():
            field = method(pair)
            maps = field.warp(pair["moving_label"], mode="nearest"), pair["fixed_label"], pair["moving_label"]
            dice = [100 * float(np.nanmean(compute_learn2reg_dice(*maps, part).numpy())) for part in (seen, unseen)]
            rows[name].append((*dice, compute_sdlogj(field.ddf[None]).item()))
            print(pair["pair"], name, *(f"{value:.4g}" for value in rows[name][-1]), flush=True)
    return rows


def table(rows: dict[str, list[tuple[float, float, float]]]) -> str:
    """Means over the pairs as Markdown."""
    lines = ["", "| features | Dice of seen classes | Dice of unseen classes | SDlogJ |", "|---|---|---|---|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{mean:.4g}" for mean in np.mean(values, 0)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fire.Fire(main)
