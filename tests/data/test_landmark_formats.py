# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import struct

import itk
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_reg_ext.data import read_points, write_points

NAMES = ["points.mrk.json", "points.fcsv", "points.vtk"]
RAS = [[-1.25, 2.5, 3.0], [40.0, -50.5, 60.125]]
LPS = [[1.25, -2.5, 3.0], [-40.0, 50.5, 60.125]]
FLIP = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)


def _markups(system, points, **more):
    points = [{"label": "a", "position": list(point), **more} for point in points]
    return json.dumps({"markups": [{"type": "Fiducial", "coordinateSystem": system, "controlPoints": points}]})


def _fcsv(system, points):
    head = f"# Markups fiducial file version = 4.13\n# CoordinateSystem = {system}\n# columns = id,x,y,z,ow\n"
    return head + "".join(f"vtk_{n},{x},{y},{z},0,0,0,1,1,1,0,F-{n},,\n" for n, (x, y, z) in enumerate(points))


def _vtk(title, points, separator="\n"):
    rows = separator.join(" ".join(map(str, point)) for point in points)
    return f"# vtk DataFile Version 4.2\n{title}\nASCII\nDATASET POLYDATA\nPOINTS {len(points)} float\n{rows}\n"


@pytest.mark.parametrize(
    ("name", "text", "points"),
    [
        ("a.mrk.json", _markups("LPS", LPS), "given LPS"),
        ("a.mrk.json", _markups("RAS", RAS), "given RAS"),
        ("a.fcsv", _fcsv("LPS", LPS), "given LPS"),
        ("a.fcsv", _fcsv("1", LPS), "given LPS, number of older Slicers"),
        ("a.fcsv", _fcsv("0", RAS), "given RAS, number of older Slicers"),
        ("a.vtk", _vtk("3D Slicer output. SPACE=LPS", LPS), "given LPS"),
        ("a.vtk", _vtk("3D Slicer output. SPACE=RAS", RAS, " "), "given RAS, all in one line"),
    ],
)
@pytest.mark.parametrize("space", ["ras", "lps"])
def test_the_header_decides_in_which_space_the_numbers_are(tmp_path, name, text, points, space):
    (tmp_path / name).write_text(text)

    assert read_points(tmp_path / name, space).tolist() == RAS


def test_a_vtk_file_that_tells_no_space_has_the_one_asked_for(tmp_path):
    (tmp_path / "a.vtk").write_text(_vtk("points", LPS))
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))

    assert read_points(tmp_path / "a.vtk", "lps").tolist() == RAS
    assert read_points(tmp_path / "a.vtk", "ras").tolist() == LPS
    voxels = read_points(tmp_path / "a.vtk", "voxel", affine)
    assert voxels.tolist() == [[2 * x, 3 * y, 4 * z] for x, y, z in LPS]


@pytest.mark.parametrize(("kind", "code"), [("float", "f"), ("double", "d")])
def test_binary_vtk_is_big_endian(tmp_path, kind, code):
    head = f"# vtk DataFile Version 3.0\nSPACE=RAS\nBINARY\nDATASET POLYDATA\nPOINTS 2 {kind}\n".encode()
    # 0x0d0a within the numbers is no end of a line
    numbers = [struct.unpack(">f", b"\x41\x0d\x0a\x00")[0], *RAS[0][1:], *RAS[1]]
    (tmp_path / "a.vtk").write_bytes(head + struct.pack(f">6{code}", *numbers) + b"\nVERTICES 1 2\n")

    assert read_points(tmp_path / "a.vtk").flatten().tolist() == numbers


def test_itk_reads_the_vtk_files_we_write_and_we_read_the_ones_it_writes(tmp_path):
    write_points(tmp_path / "ours.vtk", torch.tensor(RAS), space="lps")

    mesh = itk.meshread(str(tmp_path / "ours.vtk"), itk.D)
    theirs = itk.array_from_vector_container(mesh.GetPoints())
    np.testing.assert_allclose(theirs, LPS)

    writer = itk.MeshFileWriter[type(mesh)].New(Input=mesh, FileName=str(tmp_path / "theirs.vtk"))
    for binary in (False, True):
        writer.SetFileTypeAsBINARY() if binary else writer.SetFileTypeAsASCII()
        writer.Update()
        assert read_points(tmp_path / "theirs.vtk", "lps").tolist() == RAS


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    points=st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 3), min_size=1, max_size=20),
    name=st.sampled_from(NAMES),
    space=st.sampled_from(["ras", "lps"]),
)
def test_written_landmarks_read_back_whatever_space_the_reader_assumes(tmp_path, points, name, space):
    points_mm = torch.tensor(points, dtype=torch.float64)

    write_points(tmp_path / name, points_mm, space)

    for assumed in ("ras", "lps"):
        torch.testing.assert_close(read_points(tmp_path / name, assumed), points_mm, rtol=0, atol=1e-6)


def test_what_slicer_needs_stands_in_the_files(tmp_path):
    for name in NAMES:
        write_points(tmp_path / name, torch.tensor(RAS), space="lps")

    markups = json.loads((tmp_path / "points.mrk.json").read_text())
    assert markups["@schema"].endswith("markups-schema-v1.0.3.json#")
    assert markups["markups"][0]["type"] == "Fiducial"
    assert markups["markups"][0]["coordinateSystem"] == "LPS"
    assert [point["position"] for point in markups["markups"][0]["controlPoints"]] == LPS
    lines = (tmp_path / "points.fcsv").read_text().splitlines()
    assert lines[1] == "# CoordinateSystem = LPS"
    assert lines[3] == "1,1.250000,-2.500000,3.000000,0,0,0,1,1,1,0,F-1,,"
    assert lines[2].count(",") == lines[3].count(",")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bad.mrk.json", "{", "not a markups file"),
        ("bad.mrk.json", '{"points": []}', "not a markups file"),
        ("bad.mrk.json", _markups("IJK", LPS), "unknown coordinate system 'IJK'"),
        ("bad.mrk.json", _markups("LPS", []), "holds no points"),
        ("bad.mrk.json", _markups("LPS", LPS, positionStatus="undefined"), "point 1 needs three finite numbers"),
        ("bad.mrk.json", _markups("LPS", [[1, 2]]), "point 1 needs three finite numbers"),
        ("bad.fcsv", _fcsv("LPS", [[1, 2, 3], [1, 2, "nan"]]), "point 2 needs three finite numbers"),
        ("bad.fcsv", _fcsv("2", LPS), "unknown coordinate system '2'"),
        ("bad.fcsv", "", "holds no points"),
        ("bad.vtk", "1,2,3\n", "not a legacy VTK file"),
        ("bad.vtk", _vtk("t", LPS).replace("POLYDATA", "STRUCTURED_GRID"), "not a legacy VTK file of polydata"),
        ("bad.vtk", _vtk("t", LPS).replace("POINTS 2", "POINTS 3"), "point 3 needs three finite numbers"),
        ("bad.vtk", _vtk("t", LPS).replace("ASCII", "BINARY").replace("POINTS 2", "POINTS 9"), "ends before"),
        ("bad.vtk", _vtk("t", LPS).replace("float", "int"), "no POINTS"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)

    with pytest.raises(ValueError, match=rf"{name} .*{message}"):
        read_points(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_forms_for_mm_take_no_voxels_and_nothing_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}: this form holds mm"):
        write_points(tmp_path / name, torch.tensor(RAS), "voxel", torch.eye(4))

    assert not list(tmp_path.iterdir())
