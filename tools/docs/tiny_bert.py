# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A random language model for detectors that are asked by text."""

from pathlib import Path

import torch
from mmdet.datasets import CocoDataset, Objects365V1Dataset

#: what configs call it; a folder of this name is taken before any download
NAME = 'bert-base-uncased'
#: what a detector is asked for where no data set says it
TEXT = ('person', 'bicycle', 'car')


def vocabulary() -> list[str]:
    """Tokens: special ones, letters, and the words of common classes.

    Returns:
        list[str]: In the order of their numbers.
    """
    signs = 'abcdefghijklmnopqrstuvwxyz0123456789'
    classes = (
        CocoDataset.METAINFO['classes']
        + Objects365V1Dataset.METAINFO['classes']
    )
    words = {w for name in classes for w in name.lower().split()}
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'.?,/()&-']
    pieces = [*signs, *(f'##{s}' for s in signs)]
    return special + pieces + sorted(words - set(special + pieces))


def make_tiny_bert(folder: Path) -> None:
    """Writes a BERT of two layers, 768 wide, with seeded random weights.

    Args:
        folder (Path): Gets a folder :data:`NAME`, which ``transformers``
            finds where ``folder`` is the working directory.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    path = folder / NAME
    path.mkdir()
    tokens = vocabulary()
    (path / 'vocab.txt').write_text('\n'.join(tokens) + '\n')
    BertTokenizer(str(path / 'vocab.txt')).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), num_hidden_layers=2, intermediate_size=768
    )
    BertModel(config).save_pretrained(path)
