#!/usr/bin/env bash
# From a fresh machine to a chat model, one stage at a time, with torchrun in sight: toolchain, download, tokenizer, every stage,
# evaluation, report.
#
#   ./speedrun.sh                          on 8 GPUs the $100 tier, on ClimbMix and SmolTalk; elsewhere the demo, which downloads nothing
#   ./speedrun.sh --dry-run                what it would do: plan, time and cost, download, disk. Nothing is kept
#   ./speedrun.sh --data my/text           your text in place of ClimbMix; such flags go to every stage that reads the recipe
#   NPROC=4 RECIPE=my.toml RUN=runs/mine ./speedrun.sh     four GPUs, your recipe and what it names, another run folder
#
# Run it again after an interruption: what is there is not downloaded again, what is finished is passed over, an unfinished stage goes
# on from its newest checkpoint. HF_ENDPOINT names a mirror of the hub, HF_HUB_OFFLINE=1 takes what is there.
set -euo pipefail
cd "$(dirname "$0")"

GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
NPROC=${NPROC:-$((GPUS > 0 ? GPUS : 1))}   # processes on this machine: one per GPU, or 1 on CPU
if ((GPUS >= 8)); then TIER=recipes/speedrun-100usd; else TIER=recipes/demo; fi
RECIPE=${RECIPE:-$TIER}
RUN=${RUN:-runs/speedrun}
case $RECIPE in recipes/speedrun-* | recipes/single-gpu-*) DOWNLOAD=${DOWNLOAD-yes} ;; esac
DOWNLOAD=${DOWNLOAD-}                      # yes, or empty: the recipe names its data, or writes it (the demo)
DATA_FOLDER=${DATA_FOLDER:-data}           # where downloads go
TEXT=${TEXT:-climbmix}                     # or fineweb-edu
CHATS=${CHATS:-smoltalk}
TASKS=${TASKS:-arc gsm8k}                  # `nutshell data download` lists them all
TOKENS_PER_SHARD=50000000                  # 250M characters at about 5 a token, some to spare

DRY=
for flag; do                               # taken out of the flags, wherever it stands
  shift
  if [[ $flag == --dry-run ]]; then DRY=1; else set -- "$@" "$flag"; fi
done

# ---- toolchain: Python, Rust for the tokenizer, everything else from pip
export PATH="$PWD/.venv/bin:$PATH"
python -c "import nutshell" 2>/dev/null || make setup

nutshell() { python -m nutshell "$@"; }
nutshell doctor                            # ends here where something is missing that training needs
ranks() { if ((NPROC > 1)); then torchrun --standalone --nproc_per_node="$NPROC" -m nutshell "$@"; else nutshell "$@"; fi; }

draft() {                                  # a statement about the plan that follows from recipe and flags alone
  python -c "
import sys
from nutshell.cli.recipe import read_recipe
from nutshell.plan.estimate import describe
from nutshell.plan.plan import draft_plan
plan = draft_plan(read_recipe('plan', sys.argv[1:], None))
stage = plan.stages['pretrain']
$1" "${@:2}"
}

# ---- data: what no flag names is downloaded
NAMES=()
if [[ $DOWNLOAD ]]; then
  SHARDS=${SHARDS:-$(draft "print(1 + stage.steps * stage.tokens_per_step // $TOKENS_PER_SHARD)" "$RECIPE" "$@")}
  given=" $* "
  if [[ $given != *" --data"[\ =]* ]]; then NAMES+=("$TEXT") && set -- "$@" --data "$DATA_FOLDER/$TEXT"; fi
  if [[ $given != *" --sft"[\ =]* ]]; then NAMES+=("$CHATS") && set -- "$@" --sft "$DATA_FOLDER/$CHATS"; fi
  if [[ $given != *" --eval-data"[\ =]* ]]; then NAMES+=($TASKS) && set -- "$@" --eval-data "$DATA_FOLDER/eval"; fi
fi

if [[ $DRY ]]; then
  echo "machine   $GPUS GPUs, $NPROC processes; recipe $RECIPE; run $RUN"
  if ((${#NAMES[@]})); then nutshell data download "${NAMES[@]}" -n "$SHARDS" --out "$DATA_FOLDER" --dry-run; fi
  echo "stages    data, tokenizer, plan, pretrain, midtrain, sft, rl, eval, report"
  if [[ $RECIPE == recipes/demo ]]; then
    echo "plan      fits a budget in minutes to this machine, which is timed when the run starts"
  else
    draft "print(describe(plan))" "$RECIPE" "$@"
  fi
  exit
fi
if ((${#NAMES[@]})); then nutshell data download "${NAMES[@]}" -n "$SHARDS" --out "$DATA_FOLDER"; fi

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
