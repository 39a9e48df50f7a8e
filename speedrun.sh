#!/usr/bin/env bash
# What `nutshell speedrun` does, one stage at a time, with torchrun in sight.
#
#   ./speedrun.sh                                     the demo's recipe on this machine
#   ./speedrun.sh --depth 4 --budget ""               flags go to every stage that reads the recipe
#   NPROC=8 RECIPE=my.toml RUN=runs/mine ./speedrun.sh    eight GPUs, another recipe, another run folder
#
# Run it again after an interruption: what is finished is passed over, an unfinished stage goes on from its newest checkpoint.
set -euo pipefail
cd "$(dirname "$0")"

NPROC=${NPROC:-1}              # processes on this machine: one per GPU, or 1 on CPU
RECIPE=${RECIPE:-recipes/demo}
RUN=${RUN:-runs/speedrun}

export PATH="$PWD/.venv/bin:$PATH"
python -c "import nutshell" 2>/dev/null || make setup

nutshell() { python -m nutshell "$@"; }
ranks() { torchrun --standalone --nproc_per_node="$NPROC" -m nutshell "$@"; }

nutshell data            "$RECIPE" --out "$RUN" "$@"   # text -> shards
nutshell tokenizer train "$RECIPE" --out "$RUN" "$@"   # shards -> vocabulary
ranks    plan            "$RECIPE" --out "$RUN" "$@"   # every size, rate and number of steps, before any compute is spent
ranks    pretrain        "$RECIPE" --out "$RUN" "$@"   # language from text
ranks    midtrain        "$RECIPE" --out "$RUN" "$@"   # conversations and tools
ranks    sft             "$RECIPE" --out "$RUN" "$@"   # fine-tuning
ranks    rl              "$RECIPE" --out "$RUN" "$@"   # rewards that can be checked
nutshell eval   "$RUN"                                 # the primer's held-out tasks on the last stage
nutshell report "$RUN"                                 # report.md, report.json, plots

echo "Talk to it: make chat RUN=$RUN, or make serve RUN=$RUN"
