"""Decoders: light networks on the tokens of the frozen encoder, one file a kind (``kinds/``), one config a decoder.

``tokens.py`` encodes every series once and keeps the tokens on disk; ``stage.py`` trains one decoder on them with the
common loop; ``train.py`` does so for each configuration, calibrates, proves that the encoder is what it was and writes
a weights folder; ``evaluate.py`` gives the figures of a weights folder.
"""
