# A stock Triton with ONNX Runtime, plus what the Python stages import. See docker/README.md.
#   docker build -f docker/serve.Dockerfile -t marquee-triton .
FROM nvcr.io/nvidia/tritonserver:25.06-py3

COPY requirements/container-serve.txt /tmp/serve.txt
RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --no-deps --require-hashes \
        -r /tmp/serve.txt

# TF32 rounds float32 products to 10 bits: scores would differ from those of the CPU.
ENV NVIDIA_TF32_OVERRIDE=0 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=5s --timeout=3s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models", "--exit-timeout-secs=15"]
