#!/usr/bin/env bash
# One consumer card of 24 GB, overnight. Your own text: DATA=folder recipes/single-gpu-24gb/run.sh
# Run it again after an interruption: it goes on. Settings go behind it, as for speedrun.sh.
cd "$(dirname "$0")/../.." && NPROC=${NPROC:-1} RECIPE=recipes/single-gpu-24gb RUN=${RUN:-runs/single-gpu-24gb} exec ./speedrun.sh ${DATA:+--data "$DATA"} "$@"
