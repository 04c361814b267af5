"""The lesson, made visible: each idea, with its numbers and its picture, on a real network.

Every idea is a file of this package with the same parts: ``Options`` (its flags), ``explain`` (computes, with the
functions of backprop.py), ``finding`` (one sentence), ``table`` and ``figure``.
"""
