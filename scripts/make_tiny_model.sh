#!/usr/bin/env bash
# Makes the weights of the embedded model (jgrpo/assets/tiny) again, in two supervised runs on generated
# solutions; about 20 minutes on two quiet cores. Usage: scripts/make_tiny_model.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/make_tiny}
python=.venv/bin/python

$python train.py configs/sft_tiny.yaml run.dir="$folder/first"
$python -m jgrpo export "$folder/first" --to "$folder/first/exported"
$python train.py configs/sft_tiny.yaml run.dir="$folder/second" run.seed=1 run.steps=1800 \
  model.init=weights model.path="$folder/first/exported" optim.lr=2e-3 data.options.careless=0.55
$python -m jgrpo export "$folder/second" --to "$folder/second/exported"
cp "$folder/second/exported/model.safetensors" jgrpo/assets/tiny/model.safetensors
echo "wrote jgrpo/assets/tiny/model.safetensors"
