#!/bin/sh
# Train, choose the best checkpoint, test. With nothing set it runs the built-in data set; for the paper's runs:
#
#   DATASET_NAME=CUHK-PEDES ROOT_DIR=/path/to/data NOISY_RATE=0.2 sh run_rde.sh
#
# Variables: DATASET_NAME ROOT_DIR NOISY_RATE NOISY_FILE LOSS TAU MARGIN SELECT_RATIO NUM_EPOCH BATCH_SIZE OUTPUT_DIR
# NAME CONFIG PYTHON. Further arguments are handed on to train.py.
set -eu
cd "$(dirname "$0")"

: "${DATASET_NAME:=SynthPEDES}"
if [ -z "${CONFIG:-}" ]; then
    CONFIG=configs/base.yaml
    if [ "$DATASET_NAME" = SynthPEDES ]; then CONFIG=configs/SynthPEDES.yaml; fi
fi

# Only what is set becomes a flag; everything else is the configuration's.
flag() { if [ -n "$2" ]; then flags="$flags --$1 '$(printf %s "$2" | sed "s/'/'\\\\''/g")'"; fi; }
flags=
flag root_dir "${ROOT_DIR:-}"
flag noisy_rate "${NOISY_RATE:-}"
flag noisy_file "${NOISY_FILE:-}"
flag loss_names "${LOSS:-}"
flag tau "${TAU:-}"
flag margin "${MARGIN:-}"
flag select_ratio "${SELECT_RATIO:-}"
flag num_epoch "${NUM_EPOCH:-}"
flag batch_size "${BATCH_SIZE:-}"
flag output_dir "${OUTPUT_DIR:-}"
flag name "${NAME:-}"
eval "set -- $flags \"\$@\""
exec "${PYTHON:-python}" train.py --config "$CONFIG" --dataset_name "$DATASET_NAME" "$@"
