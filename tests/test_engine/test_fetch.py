# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Checkpoints by URL."""

import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from rank_kit import on_ranks

from mmdet_ptq.engine.fetch import local_checkpoint
from mmdet_ptq.errors import CheckpointError


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing; counts what was asked for."""

    asked: list = []

    def log_message(self, *_):
        """Nothing."""

    def do_GET(self):
        """Counts."""
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def cache(tmp_path):
    """A cache of torch.hub of its own."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / 'hub')
    yield tmp_path / 'hub' / 'checkpoints'
    torch.hub.set_dir(before)


@pytest.fixture
def server(tmp_path):
    """Serves a folder; gives its address and the folder."""
    folder = tmp_path / 'served'
    folder.mkdir()
    Quiet.asked = []
    handler = partial(Quiet, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{found.server_port}', folder
        found.shutdown()
        thread.join()


def test_a_path_is_a_path(tmp_path):
    assert local_checkpoint(tmp_path / 'a.pth') == tmp_path / 'a.pth'
    assert local_checkpoint('a.pth') == Path('a.pth')
    assert local_checkpoint('~/a.pth') == Path.home() / 'a.pth'


def test_a_file(tmp_path):
    (tmp_path / 'a b.pth').write_bytes(b'x')
    url = (tmp_path / 'a b.pth').as_uri()
    assert '%20' in url
    assert local_checkpoint(url) == tmp_path / 'a b.pth'


def test_a_download_is_kept(cache, server):
    url, folder = server
    (folder / 'a.pth').write_bytes(b'weights')
    for _ in range(2):
        path = local_checkpoint(f'{url}/a.pth?x=1')
        assert path.name == 'a.pth' and cache in path.parents
        assert path.read_bytes() == b'weights'
    assert Quiet.asked == ['/a.pth?x=1']


def test_two_of_one_name(cache, server):
    url, folder = server
    for name in ('one', 'other'):
        (folder / name).mkdir()
        (folder / name / 'a.pth').write_text(name)
    for name in ('one', 'other'):
        path = local_checkpoint(f'{url}/{name}/a.pth')
        assert path.read_text() == name


def test_a_name_with_a_hash_is_that_of_mmengine(cache, server):
    url, folder = server
    (folder / 'a-0123abcd.pth').write_text('weights')
    path = local_checkpoint(f'{url}/a-0123abcd.pth')
    assert path == cache / 'a-0123abcd.pth'
    # a date is no hash
    (folder / 'a-20240101.pth').write_text('weights')
    path = local_checkpoint(f'{url}/a-20240101.pth')
    assert path.parent.parent == cache


def test_what_cannot_be_had(cache, server):
    url, _ = server
    with pytest.raises(CheckpointError, match=r'cannot download .*404'):
        local_checkpoint(f'{url}/none.pth')
    assert not (cache / 'none.pth').exists()
    with pytest.raises(CheckpointError, match=r's3:// is not known.*https'):
        local_checkpoint('s3://bucket/a.pth')


@pytest.mark.parametrize(
    ('url', 'says'),
    [
        ('http://127.0.0.1:9/ä.pth', 'UnicodeEncodeError'),
        ('http://127.0.0.1:port/a.pth', "nonnumeric port: 'port'"),
        ('http://a b/a.pth', 'control characters'),
        ('http://[::1/a.pth', 'Invalid IPv6 URL'),
    ],
)
def test_urls_that_are_none(cache, url, says):
    with pytest.raises(CheckpointError, match=says) as told:
        local_checkpoint(url)
    assert url in str(told.value) and 'path' in str(told.value)


def test_an_address_with_colons_is_no_config(cache):
    with pytest.raises(CheckpointError, match='cannot download http'):
        local_checkpoint('http://[::1]:9/a.pth')


@pytest.mark.parametrize(
    ('machines', 'downloads'), [(('0', '1'), 1), (('0', '0'), 2)]
)
def test_one_process_of_each_machine_downloads(
    tmp_path, server, machines, downloads
):
    """The first of each, and all wait for it; a failure is that of all."""
    url, folder = server
    (folder / 'a.pth').write_bytes(b'weights')

    def fetch(rank):
        os.environ['LOCAL_RANK'] = machines[rank]
        # a cache for each, so that nobody finds what another one got
        torch.hub.set_dir(tmp_path / str(rank))
        path = local_checkpoint(f'{url}/a.pth')
        try:
            local_checkpoint(f'{url}/none.pth')
        except CheckpointError as error:
            return path, path.is_file(), str(error)

    (first, *told), (second, *again) = on_ranks(fetch, 2, tmp_path)
    for i, path in enumerate((first, second)):
        assert tmp_path / str(i) / 'checkpoints' in path.parents
    assert [told[0], again[0]] == [True, downloads == 2]
    assert '404' in told[1] and '404' in again[1]
    assert Quiet.asked.count('/a.pth') == downloads


def test_weights_of_the_model_zoo(cache):
    """The URL of MMDetection's metafile, as it is in the cache already."""
    name = 'yolox_tiny_8x8_300e_coco_20211124_171234-b4047906.pth'
    cache.mkdir(parents=True)
    (cache / name).write_bytes(b'weights')
    zoo = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
    assert local_checkpoint(zoo) == cache / name
    for none in ('mmdet::yolox/none.py', 'mmdet::_base_/default_runtime.py'):
        with pytest.raises(CheckpointError, match=r'no weights.*\.pth file'):
            local_checkpoint(none)
