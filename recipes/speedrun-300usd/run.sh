#!/usr/bin/env bash
# The $300 tier: depth 26 on 8xH100 in about twelve hours, above GPT-2. Your own text: DATA=folder recipes/speedrun-300usd/run.sh
# Run it again after an interruption: it goes on. Settings go behind it, as for speedrun.sh.
cd "$(dirname "$0")/../.." && NPROC=${NPROC:-8} RECIPE=recipes/speedrun-300usd RUN=${RUN:-runs/speedrun-300usd} exec ./speedrun.sh ${DATA:+--data "$DATA"} "$@"
