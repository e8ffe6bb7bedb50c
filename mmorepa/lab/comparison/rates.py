"""Choosing the learning rate of each config by the same small search, before it is compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UserError
from .measured_run import Job
from .study import plan

#: The field that is searched.
RATE = 'optim_wrapper.optimizer.lr'
#: All rates of all configs are tried with this one.
SEED = 0


@dataclass(frozen=True)
class Choice:
    """What the search says of one config.

    Attributes:
        config (str): Its name.
        values (dict[float, float]): The metric of each rate, lowest rate first.
    """

    config: str
    values: dict[float, float]

    @property
    def rate(self) -> float:
        """The best rate; of several the lowest."""
        return max(self.values, key=self.values.get)

    @property
    def at_end(self) -> str:
        """``'lowest'`` or ``'highest'`` where the best rate is that of those tried, else empty."""
        rates = list(self.values)
        ends = {rates[0]: 'lowest', rates[-1]: 'highest'}
        return ends.get(self.rate, '') if len(rates) > 1 else ''


def plan_search(
    configs: Sequence[str | os.PathLike],
    rates: Iterable[float],
    out: str | os.PathLike,
    cfg_options: Mapping | None = None,
    options_for: Sequence[tuple[str, Mapping]] = (),
    search_options: Mapping | None = None,
    deterministic: bool = False,
) -> list[Job]:
    """The runs of a search: each config with each rate, all with one seed.

    Args:
        rates (Iterable[float]): The learning rates.
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
        for job in plan(configs, [SEED], out, cfg_options, options, deterministic):
            name = f'{job.name}/lr{rate:g}'
            jobs.append(replace(job, name=name, folder=str(Path(out, name, f'seed{SEED}'))))
    return jobs


def choose(records: Sequence[dict], metric: str | None = None) -> list[Choice]:
    """Find the best rate of each config.

    Args:
        records (Sequence[dict]): Of the finished runs of :func:`plan_search`.
        metric (str, optional): The higher the better. By default the first that the first run has.

    Returns:
        list[Choice]: One a config that has a finished run.

    Raises:
        UserError: If a run does not have the metric.
    """
    values = {}
    for record in records:
        metric = metric or next(iter(record['metrics']))
        if metric not in record['metrics']:
            raise UserError(
                f'{record["config"]} has no metric {metric!r}: choose a --metric from '
                f'{", ".join(record["metrics"])}'
            )
        config, _, rate = record['config'].rpartition('/lr')
        values.setdefault(config, {})[float(rate)] = record['metrics'][metric]
    return [Choice(config, dict(sorted(found.items()))) for config, found in values.items()]
