# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io

import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_reg_ext.handlers import report_figure, report_png

SIZE = (10, 12, 8)
AFFINE = torch.diag(torch.tensor([2.0, -1.0, 3.0, 1.0], dtype=torch.float64))


def volume() -> MetaTensor:
    return MetaTensor(torch.rand(1, *SIZE), affine=AFFINE)


def pair() -> dict:
    ddf = MetaTensor(torch.zeros(3, *SIZE), affine=AFFINE)
    return {"pair": "a__b", "fixed": volume(), "moving": volume(), "warped": volume(), "pred": ddf}


def pixels(content: bytes) -> list:
    with Image.open(io.BytesIO(content)) as image:
        return list(image.getdata())


def test_the_content_is_that_of_the_figure_of_the_pair():
    item = {**pair(), "metrics": {"dice": 50.0}}
    figure = report_figure(
        *(item[key] for key in ("fixed", "moving", "warped", "pred")), AFFINE, {"dice": 50.0}, "a__b"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")

    assert pixels(report_png(item)) == pixels(buffer.getvalue())


def test_fewer_dots_make_a_smaller_picture_of_the_same_shape():
    whole, half = (Image.open(io.BytesIO(report_png(pair(), dots))).size for dots in (None, 50))

    assert half == pytest.approx((whole[0] / 2, whole[1] / 2), abs=1)


def test_options_of_the_figure_can_be_replaced():
    item = pair()

    titled = report_png({**item, "pair": "another name"}, title="a__b")

    assert pixels(titled) == pixels(report_png(item))
    assert len(pixels(report_png(item, columns=["Fixed"]))) < len(pixels(titled)) / 3


@pytest.mark.parametrize("key", ["pair", "fixed", "moving", "warped", "pred"])
def test_what_the_figure_lacks_is_named(key):
    with pytest.raises(ValueError, match=f"it needs {key}[.]"):
        report_png({**pair(), key: None})
