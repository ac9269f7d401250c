"""Weights turned so that they and their activations quantise with less loss; the model computes the same as before.

The way in for any such change of the weights, in this order:

1. ``options.py``: what ``--rotate`` and ``--smooth`` ask for; ``Request`` → ``Plan.rotate``, ``Plan.smooth`` and, where
   something is measured for them, ``Plan.calibration``.
2. ``prepare.py``: ``prepared(plan, …)`` is called by ``build.convert`` before anything is read. ``rotation_of`` makes
   the matrices (a ``Rotation``), ``learn.py`` a better R1; source and kept adapters are changed by them.
3. ``rotate.py``: ``rotated(source, rotation)`` says what becomes of each tensor: a ``Change`` (``change.py``) in
   ``Source.changes``, by canonical name. Nothing is computed yet; the gains of norms alone are read. ``smooth.py``:
   ``smoothed(source, …)`` adds factors to these. What layers read on calibration texts (``texts.py``) ``forward.py``
   computes, of the source with the changes that it has by then.
4. ``rkconvert.artifact.blocks.block_jobs(source, name, …)`` yields the tensor as it is to be stored, a block of rows at
   a time, adapters merged and the change made in float64. Quantising, the choice of a hybrid's layers and ``emit.py``
   all read through it, so whoever adds a ``Change`` is done.

A matrix is an ``Orthogonal`` (``orthogonal.py``): ``Orthogonal.dense(q)`` of any (n, n), or factors of a Kronecker
product, which cost less to multiply with (``hadamard.py``).
"""
