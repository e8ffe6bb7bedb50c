"""Choosing the learning rate of each config by the same small search, before it is compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from .measured_run import Job
from .records import metric_of
from .study import plan

#: The field that is searched.
RATE = 'optim_wrapper.optimizer.lr'


@dataclass(frozen=True)
class Choice:
    """What the search says of one config.

    Attributes:
        config (str): Its name.
        values (dict[float, float | None]): The metric of each rate, the mean over the seeds of the
            search, lowest rate first; None where a run failed. One at least is a number.
    """

    config: str
    values: dict[float, float | None]

    @property
    def rate(self) -> float:
        """The best rate; of several the lowest."""
        finished = {rate: value for rate, value in self.values.items() if value is not None}
        return max(finished, key=finished.get)

    @property
    def at_end(self) -> str:
        """``'lowest'`` or ``'highest'`` where the best rate is that of those tried, else empty."""
        rates = list(self.values)
        ends = {rates[0]: 'lowest', rates[-1]: 'highest'}
        return ends.get(self.rate, '') if len(rates) > 1 else ''


def plan_search(
    configs: Sequence[str | os.PathLike],
    rates: Iterable[float],
    seeds: Sequence[int],
    out: str | os.PathLike,
    cfg_options: Mapping | None = None,
    options_for: Sequence[tuple[str, Mapping]] = (),
    search_options: Mapping | None = None,
    deterministic: bool = False,
) -> list[Job]:
    """The runs of a search: each config with each rate and each seed.

    Args:
        rates (Iterable[float]): The learning rates.
        seeds (Sequence[int]): The same for all rates of all configs.
        search_options (Mapping, optional): Fields that are changed for the search alone, dotted
            keys: above all the data, so that nothing is chosen on the test set.
        configs, out, cfg_options, options_for, deterministic: As for
            :func:`mmorepa.lab.comparison.study.plan`.

    Returns:
        list[Job]: Called ``<config>/lr<rate>``, in the folder of that name.

    Raises:
        UserError: As :func:`mmorepa.lab.comparison.study.plan`.
    """
    jobs = []
    for rate in sorted(set(rates)):
        options = [*options_for, ('*', {**(search_options or {}), RATE: rate})]
        for job in plan(configs, seeds, out, cfg_options, options, deterministic):
            name = f'{job.name}/lr{rate:.12g}'
            jobs.append(replace(job, name=name, folder=str(Path(out, name, f'seed{job.seed}'))))
    return jobs


def choose(jobs: Sequence[Job], records: Sequence[dict], metric: str | None = None) -> list[Choice]:
    """Find the best rate of each config.

    Args:
        jobs (Sequence[Job]): From :func:`plan_search`.
        records (Sequence[dict]): Of those that finished.
        metric (str, optional): The higher the better. By default the first that the first run has.

    Returns:
        list[Choice]: One a config that has a rate at which no run failed.

    Raises:
        UserError: If a run does not have the metric.
    """
    if not records:
        return []
    metric = metric_of(records, metric)
    found = {(record['config'], record['seed']): record['metrics'][metric] for record in records}
    tried = {}
    for job in jobs:
        rates = tried.setdefault(job.name.rpartition('/lr')[0], {})
        rates.setdefault(job.cfg_options[RATE], []).append(found.get((job.name, job.seed)))
    # Means over other seeds cannot be compared.
    choices = [
        Choice(
            config, {rate: None if None in runs else fmean(runs) for rate, runs in rates.items()}
        )
        for config, rates in tried.items()
    ]
    return [choice for choice in choices if any(v is not None for v in choice.values.values())]
