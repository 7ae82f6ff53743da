# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Small pieces of work on several ranks, in copies of this process."""

import multiprocessing

import torch.distributed as dist


def on_ranks(function, count, folder):
    """Runs ``function(rank)`` on each rank of a group on CPU.

    Args:
        function (Callable[[int], Any]): What a rank does.
        count (int): How many ranks.
        folder (Path): Where they may meet.

    Returns:
        list: What each of them returned.
    """
    context = multiprocessing.get_context('fork')
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    ranks = [
        context.Process(
            target=_rank,
            args=(function, rank, count, folder / 'meeting', pipe[1]),
        )
        for rank, pipe in enumerate(pipes)
    ]
    for one in ranks:
        one.start()
    try:
        found = [pipe[0].poll(60) and pipe[0].recv() for pipe in pipes]
        for one in ranks:
            one.join(60)
    finally:
        for one in ranks:
            one.kill()
    assert [one.exitcode for one in ranks] == [0] * count
    return found


def _rank(function, rank, count, meeting, pipe):
    dist.init_process_group(
        'gloo', f'file://{meeting}', rank=rank, world_size=count
    )
    pipe.send(function(rank))
    dist.destroy_process_group()
