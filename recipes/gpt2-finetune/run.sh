#!/usr/bin/env bash
# GPT-2 goes on with Shakespeare. HF=FOLDER_OF_GPT2 is a folder of transformers (config.json, model.safetensors, tokenizer files).
# Settings go behind it: recipes/gpt2-finetune/run.sh --out runs/mine
cd "$(dirname "$0")/../.." || exit 1
[ -d models/gpt2 ] || nutshell import hf "${HF:?HF=FOLDER_OF_GPT2 names the folder of GPT-2}" --chat --out models/gpt2 || exit
[ -d data/tinyshakespeare ] || nutshell data download tinyshakespeare || exit
exec nutshell pretrain recipes/gpt2-finetune/config.toml "$@"
