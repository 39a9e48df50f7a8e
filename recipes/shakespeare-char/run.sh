#!/usr/bin/env bash
# A small Shakespeare, letter by letter, in minutes on a CPU. Settings go behind it: recipes/shakespeare-char/run.sh --out runs/mine
cd "$(dirname "$0")/../.." || exit 1
[ -d data/tinyshakespeare ] || nutshell data download tinyshakespeare || exit
exec nutshell speedrun recipes/shakespeare-char/config.toml "$@"
