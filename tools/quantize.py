#!/usr/bin/env python
"""Quantize a checkpoint to int8: python tools/quantize.py CONFIG CHECKPOINT OUT."""

import argparse

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write the deploy form of a checkpoint in int8: an ONNX file (OUT.onnx), or a '
        'TorchScript program whose backbone is in int8 (OUT.pt). With --report DIR look at every '
        'layer instead, or as well.'
    )
    cli.add_model(parser)
    cli.add_out(parser, 'the file to write; may be left out with --report', nargs='?')
    parser.add_argument(
        '--backend',
        choices=['onnxruntime', 'torch'],
        default='onnxruntime',
        help='default: onnxruntime',
    )
    parser.add_argument(
        '--mode',
        choices=['static', 'dynamic'],
        default='static',
        help='find the ranges of activations on calibration images, or anew for each input '
        '(onnxruntime); default: static',
    )
    parser.add_argument(
        '--calibration',
        type=cli.positive,
        default=256,
        metavar='N',
        help='images of the training set, through the test pipeline (default: 256)',
    )
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument(
        '--per-channel',
        action='store_true',
        default=True,
        help='a scale for each output channel of a weight (default); with --mode dynamic only '
        'linear layers have it',
    )
    scales.add_argument(
        '--per-tensor',
        action='store_false',
        dest='per_channel',
        help='one scale for a weight',
    )
    parser.add_argument(
        '--method',
        choices=['minmax', 'entropy', 'percentile', 'histogram'],
        help='how ranges are found: minmax (default), entropy or percentile with onnxruntime, '
        'histogram (default) or minmax with torch',
    )
    parser.add_argument(
        '--reduce-range',
        action='store_true',
        help='onnxruntime: 7 bits for weights, for x86 CPUs without VNNI',
    )
    parser.add_argument(
        '--evaluate',
        action='store_true',
        help='evaluate the float and the int8 form on the test set of the config',
    )
    parser.add_argument(
        '--report',
        metavar='DIR',
        help='quantize each layer alone, print a table, and write layers.json, layers.png and '
        'ranges.png; with --evaluate the accuracy that is lost too',
    )
    args = parser.parse_args()
    if args.out is None and args.report is None:
        parser.error('wanted OUT, --report DIR, or both')
    return args


def main() -> int:
    args = parse_args()
    from mmorepa.deploy.quantization import Settings
    from mmorepa.engine.run import load_config

    cfg = load_config(args.config, cfg_options=args.cfg_options)
    settings = Settings(args.backend, args.mode, args.per_channel, args.method, args.reduce_range)
    if args.report:
        from mmorepa.lab.analysis import quantization_report

        quantization_report.check_folder(args.report, args.force)
    if args.out:
        write_int8(cfg, args, settings)
    if args.report:
        write_report(cfg, args)
    return 0


def write_int8(cfg, args: argparse.Namespace, settings) -> None:
    from mmorepa.deploy.quantization import quantize

    done = quantize(
        cfg, args.checkpoint, args.out, settings, args.calibration, args.evaluate, args.force
    )
    if done.trained:
        print('ranges of activations: found by quantization-aware training')
    elif done.calibration:
        print(f'ranges of activations: found on {done.calibration} images, {settings.method}')
    before, after = done.bytes
    print(f'weights in float: {before / 2**20:.1f} MiB, file in int8: {after / 2**20:.1f} MiB')
    print(f'wrote {done.out} and {done.out}.json')
    if done.metrics:
        print(f'on the test set: {done.metrics[0]} in float, {done.metrics[1]} in int8')


def write_report(cfg, args: argparse.Namespace) -> None:
    from mmorepa.lab.analysis import quantization_report

    report = quantization_report.study(
        cfg, args.checkpoint, args.calibration, args.per_channel, args.evaluate
    )
    report.show()
    report.write(args.report)
    print(f'wrote {", ".join(f"{args.report}/{name}" for name in quantization_report.FILES)}')


if __name__ == '__main__':
    cli.run(main)
