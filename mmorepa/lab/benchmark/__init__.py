"""The benchmark: what a training step, an evaluation and a generated kernel cost.

``plan`` says what is measured, ``subjects`` and ``released`` build it, ``steps``, ``processes``,
``timing`` and ``memory`` measure, ``operations`` and ``counted_step`` count, ``roofline`` computes
what a GPU would take, ``measuring`` runs it all, ``results`` holds the numbers and writes them as
JSON, ``tables`` and ``pictures`` show them.
"""
