#!/usr/bin/env bash
# The $100 tier: a first chat model on 8xH100 in about four hours. Your own text: DATA=folder recipes/speedrun-100usd/run.sh
# Run it again after an interruption: it goes on. Settings go behind it, as for speedrun.sh.
cd "$(dirname "$0")/../.." && NPROC=${NPROC:-8} RECIPE=recipes/speedrun-100usd RUN=${RUN:-runs/speedrun-100usd} exec ./speedrun.sh ${DATA:+--data "$DATA"} "$@"
