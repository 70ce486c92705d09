# Copyright (c) monai_reg_ext contributors
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.utils import ensure_tuple, optional_import
from torch import nn

from monai_reg_ext.apps.trial_evaluation import TrialEvaluation
from monai_reg_ext.data import whole_file
from monai_reg_ext.data.error_line import error_line
from monai_reg_ext.metrics import LOWER_IS_BETTER, rank_scores

optuna, _ = optional_import("optuna")

__all__ = ["SelfConfiguration"]

logger = logging.getLogger(__name__)

# settings that ask too much of the images' size or of the memory are no reason to stop
UNFIT = (ValueError, torch.OutOfMemoryError)


class SelfConfiguration:
    """Searches the settings of a bundle's network that suit a task, on training pairs: training without weights.

    Every trial builds the network of an inference config with other settings, registers all pairs and is measured by
    :py:class:`TrialEvaluation`; the first one keeps the config's own settings as far as they are among the choices.
    Optuna proposes the others; the winner has the best geometric mean of ranks over all metrics. Its settings are
    written as a config file to be merged behind the inference config. An interrupted search goes on where it stopped,
    because all trials lie in ``study_file``; a trial that did not end is made up for.

    Args:
        network_config: inference config, or several to be merged, whose ``network_def`` is to be configured.
        search: choices by config id, e.g. ``{"network_def#estimator#grid_spacing": [2, 3, 4]}``.
        dataset: prepared training pairs, see :py:class:`TrialEvaluation`.
        postprocessing: see :py:class:`TrialEvaluation`.
        inferer: how the network is run.
        max_epochs: number of trials in all.
        device: where the network runs.
        study_file: SQLite file of the trials.
        settings_file: JSON file for the chosen settings.
        limits: largest (or, for Dice, smallest) admissible means by metric, e.g. ``{"sdlogj": 0.05}``. A metric with a
            limit is a condition and takes no part in the ranks; when no trial keeps all limits, they are ignored with
            a warning.
        seed: of the proposals.
        description: what was searched on, kept in the settings file.

    Source: Siebert et al., "ConvexAdam: Self-Configuring Dual-Optimisation-Based 3D Multitask Medical Image
    Registration", IEEE TMI 2024. Unlike there, all settings are searched together, and what was measured is what runs.
    """

    def __init__(
        self,
        network_config: str | Path | Sequence[str | Path],
        search: Mapping[str, Sequence[Any]],
        dataset: Iterable[Mapping[str, Any]],
        postprocessing: Any,
        inferer: Inferer,
        max_epochs: int,
        device: torch.device,
        study_file: str | Path,
        settings_file: str | Path,
        limits: Mapping[str, float] | None = None,
        seed: int = 0,
        description: str = "",
    ) -> None:
        self.network_config = [str(path) for path in ensure_tuple(network_config)]
        self.search = {key: list(choices) for key, choices in search.items()}
        self.dataset = dataset
        self.postprocessing = postprocessing
        self.inferer = inferer
        self.max_epochs = max_epochs
        self.device = device
        self.study_file = Path(study_file).expanduser()
        self.settings_file = Path(settings_file).expanduser()
        self.limits = dict(limits or {})
        self.seed = seed
        self.description = description

    def run(self) -> dict[str, Any]:
        """Run the trials that are missing, write the winner's settings and return them.

        Raises:
            ValueError: for pairs that cannot be measured, limits on something that is not, and a ``study_file`` of
                another search.
            RuntimeError: when no trial succeeded.
        """
        evaluation = TrialEvaluation(self.dataset, self.postprocessing)
        self._check_limits(evaluation)
        study = self._study(evaluation)
        done = sum(_has_ended(trial) for trial in study.trials)
        logger.info("%d of %d trials are done", done, self.max_epochs)
        study.optimize(
            lambda trial: self._measure(trial, evaluation), n_trials=max(0, self.max_epochs - done), catch=UNFIT
        )
        return self._finish(study)

    def network(self, settings: Mapping[str, Any]) -> nn.Module:
        """The network of the inference config with other settings."""
        parser = ConfigParser()
        parser.read_config(self.network_config)
        parser.update(dict(settings))
        return parser.get_parsed_content("network_def").to(self.device).eval()

    def _study(self, evaluation: TrialEvaluation) -> Any:
        self.study_file.parent.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # its warnings of refused trials are tracebacks
        study = optuna.create_study(
            storage=f"sqlite:///{self.study_file}",
            study_name="self_configuration",
            directions=["minimize" if name in LOWER_IS_BETTER else "maximize" for name in evaluation.metric_names],
            load_if_exists=True,
        )
        self._check_task(study, evaluation)
        # a search that goes on must not repeat the proposals it began with
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials), multivariate=True)
        self._enqueue_own_choices(study)
        return study

    def _check_limits(self, evaluation: TrialEvaluation) -> None:
        unknown = sorted(set(self.limits) - set(evaluation.metric_names))
        if unknown:
            raise ValueError(f"limits must be on {evaluation.metric_names}, which is what is measured, got {unknown}.")

    def _check_task(self, study: Any, evaluation: TrialEvaluation) -> None:
        """Refuse to go on with the trials of another search; their figures and choices mean something else."""
        task = {
            "pairs": [pair["pair"] for pair in evaluation.pairs],
            "metrics": list(evaluation.metric_names),
            "search": self.search,
        }
        if study.user_attrs.get("task", task) != task:
            raise ValueError(
                f"{self.study_file} holds the trials of another search, with other pairs, metrics or choices. Give "
                "another study_file, or remove this one to start anew."
            )
        study.set_user_attr("task", task)

    def _enqueue_own_choices(self, study: Any) -> None:
        own = self._own_choices()
        queue = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
        # optuna's skip_if_exists would also count a trial that was interrupted
        if all(trial.user_attrs.get("own_choices") != own for trial in [*queue, *filter(_has_ended, study.trials)]):
            study.enqueue_trial(own, user_attrs={"own_choices": own})

    def _own_choices(self) -> dict[str, int]:
        """Places of the inference config's own settings among the choices, to be tried first."""
        parser = ConfigParser()
        parser.read_config(self.network_config)
        own = {key: parser.get(key) for key in self.search}
        return {key: choices.index(own[key]) for key, choices in self.search.items() if own[key] in choices}

    def _measure(self, trial: Any, evaluation: TrialEvaluation) -> tuple[float, ...]:
        # optuna keeps plain values only, so lists are chosen by their place
        settings = {key: choices[trial.suggest_int(key, 0, len(choices) - 1)] for key, choices in self.search.items()}
        trial.set_user_attr("settings", settings)
        network = self.network(settings)
        start = time.perf_counter()
        try:
            values = evaluation(lambda image: self.inferer(image.to(self.device), network))
        except UNFIT as error:
            trial.set_user_attr("refused", error_line(error))
            logger.warning("trial %d is refused: %s %s", trial.number, error_line(error), settings)
            raise
        seconds = (time.perf_counter() - start) / len(evaluation.pairs)
        trial.set_user_attr("values", values)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("trial %d: %s, %.2f s a pair: %s", trial.number, figures, seconds, settings)
        return tuple(values.values())

    def _finish(self, study: Any) -> dict[str, Any]:
        complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
        if not complete:
            raise RuntimeError("no trial succeeded; see the log for the reasons, and mend the search space.")
        candidates = [trial for trial in complete if self._admissible(trial.user_attrs["values"])]
        names = [name for name in complete[0].user_attrs["values"] if name not in self.limits]
        if not candidates or not names:
            logger.warning("no trial keeps the limits %s, which are ignored", self.limits)
            candidates, names = complete, list(complete[0].user_attrs["values"])
        scores = rank_scores({name: [trial.user_attrs["values"][name] for trial in candidates] for name in names})
        winner = candidates[int(scores.argmax())]
        found = {
            "self_configuration": {
                "description": self.description,
                "trials": len(complete),
                "limits": self.limits,
                "seed": self.seed,
                "training_pairs": winner.user_attrs["values"],
            },
            **self._configs_behind_the_first(),
            **winner.user_attrs["settings"],
        }
        with whole_file(self.settings_file) as path:
            path.write_text(json.dumps(found, indent=4) + "\n")
        logger.info("trial %d wins: %s; settings in %s", winner.number, found, self.settings_file)
        return found

    def _configs_behind_the_first(self) -> dict[str, Any]:
        """What the further network configs say, so that the settings need nothing but the first one."""
        return {
            key: value for path in self.network_config[1:] for key, value in ConfigParser.load_config_file(path).items()
        }

    def _admissible(self, values: Mapping[str, float]) -> bool:
        return all(
            values[name] <= limit if name in LOWER_IS_BETTER else values[name] >= limit
            for name, limit in self.limits.items()
        )


def _has_ended(trial: Any) -> bool:
    """Whether a trial was measured or refused, and not interrupted."""
    return not {"values", "refused"}.isdisjoint(trial.user_attrs)
