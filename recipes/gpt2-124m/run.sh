#!/usr/bin/env bash
# GPT-2 124M from the beginning on eight GPUs (NPROC=1 for one). Settings go behind it: recipes/gpt2-124m/run.sh --out runs/mine
cd "$(dirname "$0")/../.." || exit 1
[ -d data/fineweb-edu ] || nutshell data download fineweb-edu -n 240 || exit
exec torchrun --nproc-per-node="${NPROC:-8}" -m nutshell pretrain recipes/gpt2-124m/config.toml "$@"
