#!/usr/bin/env python
"""Compare configs over seeds: python tools/compare.py CONFIG [CONFIG ...] --out DIR."""

import argparse
from dataclasses import replace
from pathlib import Path

import cli


def parse_args() -> argparse.Namespace:
    fields, fields_for = dict_actions()
    parser = argparse.ArgumentParser(
        description='Train every config with every seed, each run in a process of its own, and '
        'compare the metric, the time of a step, memory and parameters. Prints a Markdown table; '
        'writes table.md, table.json and figure.png. Finished runs are kept: called again, the '
        'command goes on where it stopped, and it exits with 1 while a run fails.'
    )
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='the config files; NAME=FILE gives one another name, so that it can be compared with '
        'itself under other --cfg-options-for',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=seed, default=[0, 1, 2], metavar='N', help='(default: 0 1 2)'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='where runs and results go'
    )
    parser.add_argument(
        '--metric', metavar='NAME', help='what to compare (default: the first of the test metrics)'
    )
    parser.add_argument(
        '--against',
        metavar='CONFIG',
        help='the config that the others are compared with, seed by seed (default: the first)',
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        metavar='TEXT',
        help='what tables and picture call the configs, one text each (default: their names)',
    )
    parser.add_argument(
        '--records',
        type=Path,
        metavar='FILE',
        help='keep the records of all runs in this small JSON file as well, and do no run again '
        'that it has; for one command at a time',
    )
    parser.add_argument(
        '--rates',
        nargs='+',
        type=float,
        default=[],
        metavar='LR',
        help='learning rates to try for each config; the best is what it is compared at',
    )
    parser.add_argument(
        '--rates-seeds',
        nargs='+',
        type=seed,
        default=[0],
        metavar='N',
        help='seeds to try each rate with; the mean counts (default: 0)',
    )
    parser.add_argument(
        '--rates-options',
        nargs='+',
        action=fields,
        default={},
        metavar='KEY=VALUE',
        help='fields of the configs to change where rates are tried: the data, for a test set '
        'must not choose',
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='deterministic algorithms alone; on a CPU runs repeat themselves without it',
    )
    cli.add_config_options(parser)
    parser.add_argument(
        '--cfg-options-for',
        nargs='+',
        action=fields_for,
        default=[],
        metavar=('PATTERN', 'KEY=VALUE'),
        help="change fields of the configs whose name (without .py) matches, '*' standing for "
        'anything; may be given several times',
    )
    return parser.parse_args()


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f'{text} is no seed, wanted 0 to {2**32 - 1}')
    return number


def dict_actions() -> tuple[type, type]:
    """What reads fields, and what reads a pattern and then fields."""
    from mmengine.config import DictAction

    class OptionsFor(DictAction):
        def __call__(self, parser, namespace, values, option_string=None):
            pattern, *fields = values
            if '=' in pattern or not fields or not all('=' in text for text in fields):
                parser.error(
                    f'{option_string} wants a PATTERN, then KEY=VALUE: got {" ".join(values)}'
                )
            parsed = argparse.Namespace()
            super().__call__(parser, parsed, fields, option_string)
            before = getattr(namespace, self.dest)
            setattr(namespace, self.dest, [*before, (pattern, getattr(parsed, self.dest))])

    return DictAction, OptionsFor


def main() -> int:
    args = parse_args()
    from mmorepa.errors import UserError
    from mmorepa.lab.comparison import rates, records, study, summary
    from mmorepa.writing import check_folder, write_text

    check_folder(args.out)
    if (args.out / 'table.md').exists() and not (args.out / 'table.json').exists():
        raise UserError(f'{args.out}/table.md is not of a comparison: choose another --out')
    names = [study.named(config)[0] for config in args.configs]
    against = study.named(args.against)[0] if args.against else names[0]
    if against not in names:
        raise UserError(f'no config is called {against}: choose --against from {", ".join(names)}')

    if args.labels and not len(set(args.labels)) == len(args.labels) == len(names):
        raise UserError(f'{len(names)} configs want as many different --labels: {args.labels}')
    labels = dict(zip(names, args.labels or names))

    def run_all(jobs: list) -> tuple:
        if args.records is None:
            return study.run_all(jobs, metric=args.metric)
        records.unpack(args.records, jobs)
        return study.run_all(
            jobs, on_record=lambda one: records.pack(args.records, [one]), metric=args.metric
        )

    failures, choices, options_for = [], [], args.cfg_options_for
    if args.rates:
        jobs = rates.plan_search(
            args.configs,
            args.rates,
            dict.fromkeys(args.rates_seeds),
            args.out,
            args.cfg_options,
            options_for,
            args.rates_options,
            args.deterministic,
        )
        found, failures = run_all(jobs)
        choices = rates.choose(jobs, found, args.metric)
        # Without a rate of its own a config is not compared.
        if len(choices) < len(set(args.configs)):
            return 1
        options_for = [*options_for, *((c.config, {rates.RATE: c.rate}) for c in choices)]
    jobs = study.plan(
        args.configs, args.seeds, args.out, args.cfg_options, options_for, args.deterministic
    )
    found, more = run_all(jobs)
    failures += more
    if not found:
        return 1
    found.sort(key=lambda record: names.index(record['config']))
    report = summary.summarize(
        [{**record, 'config': labels[record['config']]} for record in found],
        [f'{job.name} seed {job.seed}: {reason}' for job, reason in failures],
        args.metric,
        labels[against],
        [replace(choice, config=labels[choice.config]) for choice in choices],
    )
    text = summary.to_markdown(report)
    print(text, end='')
    write_text(text, args.out / 'table.md')
    summary.write_json(report, args.out / 'table.json')
    summary.write_plot(report, args.out / 'figure.png')
    agree = all(one.deploy_agrees for one in report.summaries)
    return 0 if agree and not failures else 1


if __name__ == '__main__':
    cli.run(main)
