# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import logging

import optuna
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, ConcatItemsd

from monai_reg_ext.apps import SelfConfiguration, TrialEvaluation
from monai_reg_ext.data import phantom_pair
from monai_reg_ext.metrics import compute_sdlogj
from monai_reg_ext.transforms import DDFToFixedGridd, NormalizeRobustd, ResampleToFixedd, WarpByDDFd

SIZE = (9, 8, 7)
HALF_WIDTH = "network_def#estimator#half_width"
WIDTHS = "network_def#refiner#smooth_widths"
CONFIG = {
    "imports": ["$import torch"],
    "network_def": {
        "_target_": "monai_reg_ext.networks.nets.RegistrationNet",
        "features": {"_target_": "monai_reg_ext.networks.blocks.MindSSC", "radius": 1, "dilation": 2},
        "estimator": {
            "_target_": "monai_reg_ext.networks.blocks.CoupledConvexEstimator",
            "grid_spacing": 4,
            "half_width": 2,
            "inverse_consistency": 2,
        },
        "refiner": {
            "_target_": "monai_reg_ext.networks.blocks.AdamRefiner",
            "grid_spacing": 4,
            "iterations": 2,
            "smooth_widths": [3, 3, 3],
        },
    },
    "network": "$@network_def.to('cpu')",
}


@pytest.fixture
def config(tmp_path):
    """An inference config; its network has half_width 2."""
    path = tmp_path / "inference.json"
    path.write_text(json.dumps(CONFIG))
    return path


def shift_of(half_width: int) -> torch.Tensor:
    """Displacement of so many voxels along axis 0 where the points lie, the less smooth the larger it is."""
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[:, 0] = half_width * (1 - 0.01 * torch.arange(SIZE[0]).square().reshape(-1, 1, 1))
    return ddf


def shift_by_half_width(image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    """Stands for a network, so that what is measured follows from its settings."""
    return shift_of(network.estimator.half_width[0])


def measured(half_width: int) -> dict[str, float]:
    """Figures of ``shift_by_half_width`` on ``POINTS``, which lie 3 voxels of 1 mm apart."""
    error = float(abs(3 - half_width))
    return {"tre_mm": error, "tre_hard_mm": error, "sdlogj": compute_sdlogj(shift_of(half_width)).item()}


POINTS = [
    {
        "pair": "a__b",
        "image": torch.zeros(2, *SIZE),
        "fixed_points": torch.tensor([[0.0, 2, 3], [0, 4, 5]], dtype=torch.float64),
        "moving_points": torch.tensor([[3.0, 2, 3], [3, 4, 5]], dtype=torch.float64),
    }
]


def as_total_field(pair: dict) -> dict:
    return {**pair, "pred": MetaTensor(pair["pred"], affine=torch.eye(4))}


@pytest.fixture
def configuration(config, tmp_path):
    """``configuration(max_epochs, search, **options)``: search among half widths for the one that suits ``POINTS``."""

    def build(max_epochs, search=None, **options):
        given = {
            "network_config": config,
            "search": search or {HALF_WIDTH: [1, 2, 3, 4, 5]},
            "dataset": POINTS,
            "postprocessing": as_total_field,
            "inferer": shift_by_half_width,
            "device": torch.device("cpu"),
            "study_file": tmp_path / "study.db",
            "settings_file": tmp_path / "task.json",
        }
        return SelfConfiguration(max_epochs=max_epochs, **{**given, **options})

    return build


def load_study(folder) -> optuna.Study:
    return optuna.load_study(study_name="self_configuration", storage=f"sqlite:///{folder}/study.db")


def settings_in(folder, key=HALF_WIDTH) -> list:
    """Values of a setting in all trials that were begun."""
    trials = load_study(folder).trials
    return [trial.user_attrs["settings"][key] for trial in trials if "settings" in trial.user_attrs]


def queue(configuration: SelfConfiguration, *half_widths: int) -> None:
    """Have these half widths tried behind the config's own one, before anything is proposed."""
    configuration.max_epochs = 0
    with pytest.raises(RuntimeError, match="no trial succeeded"):
        configuration.run()
    study = load_study(configuration.study_file.parent)
    for half_width in half_widths:
        study.enqueue_trial({HALF_WIDTH: configuration.search[HALF_WIDTH].index(half_width)})


@pytest.fixture(scope="module")
def phantom() -> list[dict]:
    """One prepared pair with label maps."""
    working = ["moving_working", "fixed_working"]
    preprocessing = Compose([ResampleToFixedd(), NormalizeRobustd(working), ConcatItemsd(working, "image")])
    return [preprocessing(phantom_pair(size=(32, 28, 24), spacing=(6, 6, 8), max_displacement_mm=10))]


@pytest.fixture
def real(configuration, phantom):
    """``real(max_epochs, search)``: a search with real networks on a phantom."""
    postprocessing = Compose([DDFToFixedGridd(keys="pred"), WarpByDDFd()])
    options = {"dataset": phantom, "postprocessing": postprocessing, "inferer": SimpleInferer()}
    return lambda max_epochs, search: configuration(max_epochs, search, **options)


def test_the_settings_of_the_winner_merge_behind_the_inference_config(real, phantom, config, tmp_path):
    search = {
        HALF_WIDTH: [1, 2],
        "network_def#estimator#grid_spacing": [3, 4],
        WIDTHS: [[3, 3], [3, 3, 3]],
        "network_def#final_widths": [[], [3]],  # which the inference config leaves to its default
    }
    configuration = real(3, search)

    found = configuration.run()

    settings = {key: found[key] for key in search}
    assert all(settings[key] in choices for key, choices in search.items())
    assert json.loads((tmp_path / "task.json").read_text()) == found
    parser = ConfigParser()
    parser.read_config([str(config), str(tmp_path / "task.json")])
    merged = parser.get_parsed_content("network").eval()
    assert merged.estimator.half_width == (settings[HALF_WIDTH],) * 3
    assert merged.estimator.grid_spacing == (settings["network_def#estimator#grid_spacing"],) * 3
    assert merged.estimator.inverse_consistency == 2  # as the inference config has it
    # what was measured is what runs
    measured_again = TrialEvaluation(phantom, configuration.postprocessing)(merged)
    assert found["self_configuration"]["training_pairs"] == pytest.approx(measured_again, rel=1e-4)


def test_the_settings_file_tells_how_it_came_about(configuration, tmp_path):
    found = configuration(3, limits={"sdlogj": 9.0}, seed=7, description="points, 1 pair").run()

    about = found["self_configuration"]
    assert about.pop("training_pairs") == pytest.approx(measured(found[HALF_WIDTH]))
    assert about == {"description": "points, 1 pair", "trials": 3, "limits": {"sdlogj": 9.0}, "seed": 7}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inference.json", "study.db", "task.json"]


def test_the_first_trial_has_the_configs_own_settings(configuration, tmp_path):
    search = {HALF_WIDTH: [5, 4, 3, 2], WIDTHS: [[3, 3], [3, 3, 3], [3, 5], [5]]}

    configuration(1, search).run()

    assert load_study(tmp_path).trials[0].user_attrs["settings"] == {HALF_WIDTH: 2, WIDTHS: [3, 3, 3]}


def test_own_settings_that_are_no_choice_or_left_to_a_default_are_proposed_for(configuration, tmp_path):
    search = {HALF_WIDTH: [7, 8], WIDTHS: [[3, 3, 3], [3], [5], [7]], "network_def#final_widths": [[3]]}

    found = configuration(1, search).run()

    assert found[HALF_WIDTH] in (7, 8)
    assert found[WIDTHS] == [3, 3, 3]
    assert found["network_def#final_widths"] == [3]


def test_the_winner_has_the_best_rank_score(configuration, tmp_path):
    search = {HALF_WIDTH: [0, 1, 2, 3]}
    queue(configuration(4, search), 3, 1, 0)

    found = configuration(4, search).run()

    # two metrics rank 3, 2, 1, 0 and one the other way round: 0.464, 0.581, 0.482, 0.215
    assert settings_in(tmp_path) == [2, 3, 1, 0]
    assert found[HALF_WIDTH] == 2


def test_a_search_goes_on_with_the_trials_that_are_missing(configuration, tmp_path):
    configuration(2).run()
    begun = settings_in(tmp_path)

    configuration(4).run()

    assert settings_in(tmp_path)[:2] == begun
    assert len(load_study(tmp_path).trials) == 4  # the config's own settings are not queued again


def test_a_search_that_is_complete_adds_no_trial_and_chooses_again(configuration, tmp_path):
    first = configuration(2).run()

    for max_epochs in (2, 1):
        (tmp_path / "task.json").unlink()
        assert configuration(max_epochs, inferer=None).run() == first
        assert json.loads((tmp_path / "task.json").read_text()) == first

    assert len(load_study(tmp_path).trials) == 2


def test_a_search_in_pieces_does_not_repeat_its_proposals(configuration, tmp_path):
    search = {"network_def#refiner#regularization": [1 + number / 1000 for number in range(1000)]}

    for max_epochs in (1, 2, 3):
        configuration(max_epochs, search).run()

    assert len(set(settings_in(tmp_path, *search))) == 3


def test_the_same_seed_proposes_the_same(configuration, tmp_path):
    search = {"network_def#refiner#regularization": [1 + number / 1000 for number in range(1000)]}
    proposals = []

    for folder in (tmp_path / "one", tmp_path / "two"):
        configuration(2, search, study_file=folder / "study.db").run()
        proposals.append(settings_in(folder, *search))

    assert proposals[0] == proposals[1]


class TableEvaluation:
    """Stands for a ``TrialEvaluation`` that finds these figures, by half width."""

    metric_names = ("dice", "hd95", "sdlogj")

    def __init__(self, pairs, postprocessing) -> None:
        self.pairs = pairs

    def __call__(self, register) -> dict[str, float]:
        figures = {2: (75.0, 4.0, 0.08), 3: (70.0, 2.0, 0.02)}[register(self.pairs[0]["image"])]
        return dict(zip(self.metric_names, figures, strict=True))


@pytest.mark.parametrize(
    ("limits", "winner", "warned"),
    [
        ({}, 3, False),
        ({"hd95": 3.0, "sdlogj": 0.02}, 3, False),  # kept if just reached
        ({"dice": 75.0}, 2, False),  # a lower limit
        ({"hd95": 5.0, "sdlogj": 0.09}, 2, False),  # with limits of their own they do not rank: Dice decides
        ({"dice": 72.0, "sdlogj": 0.05}, 3, True),
    ],
)
def test_limits_exclude_trials_and_are_ignored_with_a_warning_when_none_keeps_them(
    limits, winner, warned, configuration, monkeypatch, caplog
):
    monkeypatch.setattr("monai_reg_ext.apps.self_configuration.TrialEvaluation", TableEvaluation)
    options = {"search": {HALF_WIDTH: [2, 3]}, "inferer": lambda image, network: network.estimator.half_width[0]}
    queue(configuration(2, **options), 3)

    with caplog.at_level(logging.WARNING, logger="monai_reg_ext"):
        found = configuration(2, limits=limits, **options).run()

    assert found[HALF_WIDTH] == winner
    assert found["self_configuration"]["trials"] == 2
    assert (f"no trial keeps the limits {limits}" in caplog.text) == warned


def test_a_limit_on_what_is_not_measured_is_refused_before_the_first_trial(configuration, tmp_path):
    with pytest.raises(ValueError, match=r"limits must be on \('tre_mm', .*got \['dice'\]"):
        configuration(2, limits={"dice": 50.0, "sdlogj": 0.1}).run()

    assert not (tmp_path / "study.db").exists()


def test_a_window_larger_than_the_image_does_not_stop_the_search(real, tmp_path, caplog):
    search = {HALF_WIDTH: [1, 2, 20]}
    queue(real(3, search), 20, 1)

    with caplog.at_level(logging.WARNING):
        found = real(3, search).run()

    assert [trial.state.name for trial in load_study(tmp_path).trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert found["self_configuration"]["trials"] == 2
    assert found[HALF_WIDTH] in (1, 2)
    (warning,) = caplog.messages  # and no traceback
    assert warning.startswith("trial 1 is refused: half_width=(20, 20, 20) reaches beyond")


def failing(errors: dict[int, BaseException]):
    """As ``shift_by_half_width``, with an error in place of some half widths."""

    def infer(image, network):
        half_width = network.estimator.half_width[0]
        if half_width in errors:
            raise errors[half_width]
        return shift_by_half_width(image, network)

    return infer


def test_settings_that_ask_too_much_count_as_tried(configuration, tmp_path):
    inferer = failing({2: ValueError("window\ntoo large"), 3: torch.OutOfMemoryError("no memory")})
    queue(configuration(3), 3, 1)

    for _ in range(2):
        assert configuration(3, inferer=inferer).run()[HALF_WIDTH] == 1

    refused = [trial.user_attrs.get("refused") for trial in load_study(tmp_path).trials]
    assert refused == ["window too large", "OutOfMemoryError: no memory", None]


def test_a_mistake_in_the_program_stops_the_search(configuration):
    with pytest.raises(ZeroDivisionError):
        configuration(4, inferer=failing({2: ZeroDivisionError()})).run()


def test_without_a_single_success_the_search_says_so_and_writes_nothing(configuration, tmp_path):
    with pytest.raises(RuntimeError, match="no trial succeeded"):
        configuration(1, inferer=failing({2: ValueError("too large")})).run()

    assert not (tmp_path / "task.json").exists()


def test_a_trial_that_was_interrupted_is_made_up_for(configuration, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        configuration(3, inferer=failing({2: KeyboardInterrupt()})).run()

    found = configuration(3).run()

    trials = load_study(tmp_path).trials
    assert trials[0].state.name == "FAIL"
    assert trials[1].user_attrs["settings"] == {HALF_WIDTH: 2}  # the config's own settings first, once more
    assert [trial.state.name for trial in trials[1:]] == ["COMPLETE"] * 3
    assert found["self_configuration"]["trials"] == 3


def test_a_trial_that_was_killed_is_made_up_for(configuration, tmp_path):
    queue(configuration(0))
    queue(configuration(0))
    killed = load_study(tmp_path)
    assert [trial.state.name for trial in killed.trials] == ["WAITING"]  # queued once
    killed.ask().suggest_int(HALF_WIDTH, 0, 4)  # begun, and never told

    found = configuration(3).run()

    trials = load_study(tmp_path).trials
    assert [trial.state.name for trial in trials] == ["RUNNING", *["COMPLETE"] * 3]
    assert trials[1].user_attrs["settings"] == {HALF_WIDTH: 2}
    assert found["self_configuration"]["trials"] == 3


def test_the_trials_of_another_search_are_not_gone_on_with(configuration, real, phantom, tmp_path):
    pair = {**POINTS[0], "pair": phantom[0]["pair"]}
    first = configuration(1, dataset=[pair])
    first.run()

    others = [
        configuration(2, {HALF_WIDTH: [1, 2, 3]}, dataset=[pair]),
        configuration(2, dataset=[{**pair, "pair": "c__d"}]),
        configuration(2, dataset=[pair, pair]),
        real(2, first.search),  # label maps in place of points
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"study\.db holds the trials of another search"):
            other.run()

    assert len(load_study(tmp_path).trials) == 1


def test_files_may_lie_in_new_folders_with_blanks_below_the_working_folder(configuration, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    configuration(1, study_file="Läufe #2/a b.db", settings_file="Läufe #2/chosen/a b.json").run()

    assert (tmp_path / "Läufe #2" / "a b.db").stat().st_size > 0
    assert (tmp_path / "Läufe #2" / "chosen" / "a b.json").is_file()


def test_networks_are_ready_to_run_and_leave_the_config_alone(configuration, config):
    network = configuration(1).network({HALF_WIDTH: 4})

    assert network.estimator.half_width == (4, 4, 4)
    assert not network.training
    assert json.loads(config.read_text()) == CONFIG


def test_of_several_configs_the_later_one_goes_first(configuration, config, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({HALF_WIDTH: 3, "network_def#passes": 2}))

    search = configuration(1, network_config=[config, tmp_path / "other.json"])
    network = search.network({"network_def#refiner#iterations": 7})

    assert search.run()[HALF_WIDTH] == 3  # the own settings to be tried first
    assert (network.estimator.half_width, network.passes, network.refiners[0].iterations) == ((3, 3, 3), 2, 7)
