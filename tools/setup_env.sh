#!/usr/bin/env bash
# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Makes .venv with torch, mmcv, mmengine, mmdet and this package (editable).
# PYTHON=... chooses the interpreter. PIP_FIND_LINKS=... may name a folder with
# an mmcv binary that fits the torch version; without one mmcv is compiled.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

TORCH=2.13.0 MMCV=2.1.0 MMENGINE=0.10.7 MMDET=3.3.0
# mmengine 0.10 and the mmcv build import pkg_resources, gone from 81 on;
# each install says so again, since torch alone would bring the newest.
SETUPTOOLS='setuptools>=77.0.3,<81'
VENV=.venv
PY=$VENV/bin/python LOG=$VENV/setup_env.log STAMP=$VENV/.setup_env_stamp

say() { echo "[setup] $*"; }
die() { echo "[setup] FAILED: $*" >&2; exit 1; }
# step NAME HINT COMMAND...: run with its output in the log
step() {
    local name=$1 hint=$2
    shift 2
    say "$name"
    echo "== $name: $*" >>"$LOG"
    "$@" >>"$LOG" 2>&1 || die "$name. $hint (log: $LOG)"
}
pip() { "$PY" -m pip --no-input "$@"; }
get() { pip install "$@" "$SETUPTOOLS"; }
usable() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}
mmcv_works() {
    "$PY" -c "import mmcv.ops, sys; sys.exit(mmcv.__version__ != '$MMCV')"
}

key=$({ pwd; cat setup.py requirements/*.txt tools/setup_env.sh; } | cksum)
if [ -x "$PY" ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$key" ]; then
    say "$VENV is up to date"
    exit 0
fi

mkdir -p "$VENV" && : >"$LOG" || die "cannot write to $VENV."
rm -f "$STAMP"
if ! { usable "$PY" && pip --version; } >>"$LOG" 2>&1; then
    base=
    for candidate in "${PYTHON:-python3.11}" python3.12 python3.10 python3; do
        if usable "$candidate"; then base=$candidate && break; fi
        if [ -n "${PYTHON:-}" ]; then break; fi
    done
    [ -n "$base" ] || die "no Python >= 3.10 (tried ${PYTHON:-python3}):" \
        "install one, or name it: PYTHON=/path/to/python make ..."
    step "make $VENV with $base" \
        "Is the venv module there (Debian: apt install python3-venv)?" \
        "$base" -m venv "$VENV"
fi

# An environment value hides the locations in pip's own config: keep both.
if [ -n "${PIP_FIND_LINKS:-}" ]; then
    configured=$(pip config get global.find-links 2>/dev/null | tr '\n' ' ')
    export PIP_FIND_LINKS="$PIP_FIND_LINKS $configured"
fi
net='Check that pip reaches its package index.'
step 'pip, setuptools, wheel' "$net" get 'pip>=24' wheel
if "$PY" -c 'import torch' 2>/dev/null; then
    say "torch is there already ($("$PY" -c \
        'import torch; print(torch.__version__)')): left as it is"
else
    step "torch $TORCH" "$net Disk full?" get "torch==$TORCH"
fi
step "mmengine $MMENGINE" "$net" get "mmengine==$MMENGINE"

if ! mmcv_works >>"$LOG" 2>&1; then
    say "mmcv $MMCV (binary, if pip finds one)"
    if ! { get --only-binary mmcv "mmcv==$MMCV" &&
        mmcv_works; } >>"$LOG" 2>&1; then
        jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
        step 'what the mmcv build needs' "$net" get psutil ninja
        step "mmcv $MMCV from source: this takes ten minutes and more" \
            'It needs a C++17 compiler (g++) and the Python headers.' \
            env MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$jobs}" \
            "$PY" -m pip --no-input install --no-build-isolation \
            --no-binary mmcv --force-reinstall --no-deps "mmcv==$MMCV"
        step 'what mmcv needs at run time' "$net" get "mmcv==$MMCV"
        step 'check the compiled mmcv' \
            "It does not fit this torch: run '$PY -m pip cache remove mmcv'" \
            mmcv_works
    fi
fi

step "mmdet $MMDET" "$net" get "mmdet==$MMDET"
step 'mmdet-ptq (editable) with its demo and dev extras' "$net" \
    get -e '.[demo,dev]'
step 'check the environment' "Move $VENV away and run this again." \
    "$PY" -c 'import cv2, mmcv.ops, mmdet.apis, pkg_resources, torch'
echo "$key" >"$STAMP"
say "$VENV is ready"
