#!/usr/bin/env bash
# tools/dist_ptq.sh CONFIG CHECKPOINT GPUS [options of tools/ptq.py]

usage="tools/dist_ptq.sh CONFIG CHECKPOINT GPUS [options of tools/ptq.py]"
if [ $# -lt 3 ]; then
    echo "error: $# of 3 arguments given: $usage" >&2
    exit 2
fi
if ! [[ $3 =~ ^[1-9][0-9]*$ ]]; then
    echo "error: GPUS must be a whole number from 1, got '$3': $usage" >&2
    exit 2
fi

CONFIG=$1
CHECKPOINT=$2
GPUS=$3
NNODES=${NNODES:-1}
NODE_RANK=${NODE_RANK:-0}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-"127.0.0.1"}

PYTHONPATH="$(dirname "$0")/..":$PYTHONPATH \
python -m torch.distributed.run \
    --nnodes="$NNODES" \
    --node_rank="$NODE_RANK" \
    --master_addr="$MASTER_ADDR" \
    --nproc_per_node="$GPUS" \
    --master_port="$PORT" \
    "$(dirname "$0")/ptq.py" \
    "$CONFIG" \
    "$CHECKPOINT" \
    --launcher pytorch \
    "${@:4}"
