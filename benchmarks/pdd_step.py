# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

"""A search over probabilities of displacements, measured in a process of its own that ``pdd.py`` starts.

    python benchmarks/pdd_step.py '{"search": "ours", "work": "forward", "points": 8, ...}'

takes the arguments of ``main`` and prints a line of JSON as ``training_step.py`` does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pdd_forms import FORMS, Form
from training_step import measured_within

from monai_reg_ext.networks.layers import sample_axes, search_grid

__all__ = ["Search"]

FRACTION = 0.4
SHARPNESS = 0.5


class Search:
    """Features of a random pair, and what is done with them.

    - ``forward``: the expected displacements.
    - ``training``: probabilities, the mean squared error of expected labels, and the gradients of the features.
    """

    def __init__(
        self, form: Form, work: str, points: int, labels: int, channels: int, classes: int, cells: Sequence[int]
    ):
        torch.manual_seed(0)
        self.form, self.work = form, work
        self.features = torch.rand(2, 1, channels, *cells, requires_grad=work == "training")
        reach = [FRACTION * (extent - 1) / 2 for extent in cells]
        self.grid = search_grid(cells, (points,) * 3, (labels,) * 3, reach, self.features.detach(), compat=True)
        label = F.one_hot(torch.randint(classes, (2, 1, *cells)), classes)
        self.labels = label.movedim(-1, 2).float().contiguous()

    def __call__(self) -> torch.Tensor:
        """The field, or the gradient."""
        if self.work == "forward":
            with torch.no_grad():
                return self.form.field(*self.features, self.grid)
        logits = SHARPNESS * self.form.logits(*self.features, self.grid)
        probabilities = logits.flatten(1, 3).softmax(1).view_as(logits)
        seen = self.form.seen(probabilities, self.labels[1], self.grid)
        loss = F.mse_loss(seen, sample_axes(self.labels[0], self.grid.points))
        return torch.autograd.grad(loss, self.features)[0]


def main(
    search: str,
    work: str,
    points: int,
    labels: int,
    channels: int,
    classes: int,
    cells: Sequence[int],
    repeats: int,
    threads: int,
    limit: int,
) -> None:
    torch.set_num_threads(threads)
    Search(FORMS[search], work, 3, 3, channels, classes, cells)()
    step = Search(FORMS[search], work, points, labels, channels, classes, cells)
    print(json.dumps(measured_within(limit, step, repeats)))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
