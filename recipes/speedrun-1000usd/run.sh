#!/usr/bin/env bash
# The $1000 tier: depth 32 on 8xH100 in about forty hours. Your own text: DATA=folder recipes/speedrun-1000usd/run.sh
# Run it again after an interruption: it goes on. Settings go behind it, as for speedrun.sh.
cd "$(dirname "$0")/../.." && NPROC=${NPROC:-8} RECIPE=recipes/speedrun-1000usd RUN=${RUN:-runs/speedrun-1000usd} exec ./speedrun.sh ${DATA:+--data "$DATA"} "$@"
