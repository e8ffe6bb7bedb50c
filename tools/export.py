#!/usr/bin/env python
"""Export a checkpoint to ONNX and other formats: python tools/export.py CONFIG CHECKPOINT OUT."""

import argparse

import cli


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Bring a checkpoint into deploy form and write it as a file that runs without '
        'this package. It is run and compared with the checkpoint first.'
    )
    cli.add_model(parser)
    cli.add_out(parser, 'the file: .onnx, .pt2 (torch-export, aot-inductor), .pt (torchscript)')
    parser.add_argument(
        '--format',
        choices=['onnx', 'torch-export', 'torchscript', 'aot-inductor'],
        default='onnx',
        help='default: onnx; aot-inductor writes .so before torch 2.6, then .pt2',
    )
    parser.add_argument('--fp16', action='store_true', help='weights and graph in float16')
    parser.add_argument(
        '--size',
        type=cli.positive,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='input with which the graph is made, in pixels (default: 224 224)',
    )
    parser.add_argument('--opset', type=int, default=17, metavar='N', help='of ONNX (default: 17)')
    parser.add_argument(
        '--static', action='store_true', help='fix batch 1 and the size (not torchscript)'
    )
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='put channel order and normalisation into the graph, which then takes pixels',
    )
    parser.add_argument(
        '--full-size',
        action='store_true',
        help="resize a segmentor's logits to the size of the image",
    )
    parser.add_argument(
        '--images',
        type=cli.count,
        default=0,
        metavar='N',
        help="compare on N images of the config's test set as well",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from mmorepa.deploy.export import export
    from mmorepa.engine.run import load_config

    export(
        load_config(args.config, cfg_options=args.cfg_options),
        args.checkpoint,
        args.out,
        args.format,
        fp16=args.fp16,
        size=tuple(args.size),
        opset=args.opset,
        static=args.static,
        with_preprocessing=args.with_preprocessing,
        full_size=args.full_size,
        images=args.images,
        force=args.force,
        report=lambda line: print(line, flush=True),
    )


if __name__ == '__main__':
    cli.run(main)
