# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A language model of a moment."""

import pytest

from tools.docs import tiny_bert


def test_vocabulary():
    words = tiny_bert.vocabulary()
    assert len(set(words)) == len(words)
    # what a tokenizer of BERT expects at 0 is the padding
    assert words[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
    assert {'person', 'remote', 'z', '##z', '.'} <= set(words)


def test_it_is_found_by_its_name(tmp_path, monkeypatch):
    transformers = pytest.importorskip('transformers')
    tiny_bert.make_tiny_bert(tmp_path)
    monkeypatch.chdir(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert.NAME)
    found = tokenizer('person. remote.', return_tensors='pt')
    words = tokenizer.convert_ids_to_tokens(found.input_ids[0])
    assert words == ['[CLS]', 'person', '.', 'remote', '.', '[SEP]']
    model = transformers.BertModel.from_pretrained(tiny_bert.NAME).eval()
    assert model(**found).last_hidden_state.shape == (1, 6, 768)
