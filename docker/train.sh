#!/bin/sh
# Everything up to the repository for Triton: train.sh [options of marquee validate]
# RUN names the run folder; DEVICE (auto, cpu, gpu) is where Triton will run the graphs.
# What has been done already and has not changed is skipped.
set -eu
run=${RUN:-runs/sim}
marquee validate --run "$run" "$@"
for verb in features train index; do
    marquee "$verb" --run "$run"
done
if [ "${TENSORRT:-0}" = 1 ]; then
    exec marquee export --run "$run" --target container --device "${DEVICE:-auto}" --tensorrt
fi
exec marquee export --run "$run" --target container --device "${DEVICE:-auto}"
