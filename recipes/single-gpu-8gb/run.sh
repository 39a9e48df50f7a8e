#!/usr/bin/env bash
# One consumer card of 8 GB, overnight. Your own text: DATA=folder recipes/single-gpu-8gb/run.sh
# Run it again after an interruption: it goes on. Settings go behind it, as for speedrun.sh.
cd "$(dirname "$0")/../.." && NPROC=${NPROC:-1} RECIPE=recipes/single-gpu-8gb RUN=${RUN:-runs/single-gpu-8gb} exec ./speedrun.sh ${DATA:+--data "$DATA"} "$@"
