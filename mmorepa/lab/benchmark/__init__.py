"""The benchmark: what a training step, an evaluation and a generated kernel cost.

``plan`` and ``targets`` say what is measured, ``subjects`` and ``released`` build it, ``steps``,
``processes``, ``timing`` and ``memory`` measure, ``operations`` and ``counted_step`` count,
``roofline`` computes what a GPU would take, ``study`` runs it all, ``results`` holds the numbers
and writes them as JSON, ``report`` and ``plots`` show them.
"""
