#!/bin/sh
# Train, select the best checkpoint, test, write report.html. Without variables it trains on the built-in data set. For
# the paper's runs (without noise unless NOISY_RATE or CONFIG sets it, as in the published script):
#
#   DATASET_NAME=CUHK-PEDES ROOT_DIR=/path/to/data NOISY_RATE=0.2 sh run_rde.sh
#   CONFIG=configs/ablation/trl_0.5.yaml ROOT_DIR=/path/to/data sh run_rde.sh
#
# Variables: DATASET_NAME ROOT_DIR NOISY_RATE NOISY_FILE LOSS TAU MARGIN SELECT_RATIO NUM_EPOCH BATCH_SIZE OUTPUT_DIR
# NAME CONFIG PYTHON. Further arguments are passed to train.py.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# A configuration may name its own data set; the default is the built-in one.
if [ -z "${CONFIG:-}" ]; then
    : "${DATASET_NAME:=SynthPEDES}"
    CONFIG=$here/configs/base.yaml
    if [ "$DATASET_NAME" = SynthPEDES ]; then CONFIG=$here/configs/SynthPEDES.yaml; else : "${NOISY_RATE:=0}"; fi
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; fi
fi
for argument in "$@"; do
    case $argument in
    --dataset_name | --dataset_name=* | --config | --config=*)
        echo "error: give ${argument%%=*} as DATASET_NAME or CONFIG, which choose the recipe" >&2
        exit 2
        ;;
    esac
done

# Only what is set becomes a flag; everything else is the configuration's. Later arguments win.
set -- ${NAME:+--name "$NAME"} ${OUTPUT_DIR:+--output_dir "$OUTPUT_DIR"} ${BATCH_SIZE:+--batch_size "$BATCH_SIZE"} "$@"
set -- ${NUM_EPOCH:+--num_epoch "$NUM_EPOCH"} ${SELECT_RATIO:+--select_ratio "$SELECT_RATIO"} "$@"
set -- ${MARGIN:+--margin "$MARGIN"} ${TAU:+--tau "$TAU"} ${LOSS:+--loss_names "$LOSS"} "$@"
set -- ${NOISY_FILE:+--noisy_file "$NOISY_FILE"} ${NOISY_RATE:+--noisy_rate "$NOISY_RATE"} "$@"
set -- ${DATASET_NAME:+--dataset_name "$DATASET_NAME"} ${ROOT_DIR:+--root_dir "$ROOT_DIR"} "$@"
# -P: of the folder it is called from, another project's perhaps, nothing is imported.
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -P -m tools.train_and_report --config "$CONFIG" "$@"
