"""Staging spheno-occipital synchondrosis fusion from whole mid-sagittal CBCT images by knowledge distillation.

Companion to arXiv:2505.21561. The rooms, from the ground up: `stages`, `choices`, `config`, `errors`; `images`; `phantom`; `cohort`;
`method` (the paper itself); `study` (training, results); `predict`, `steps` (with `record`, what it keeps) and `cli` on top. Nothing imports upward.
"""

__version__ = "0.1.0"
