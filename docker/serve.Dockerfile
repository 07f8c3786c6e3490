# Serves the model repository of a run with the embedded Triton, on CPU. Not built yet (see
# docker/README.md).
#   docker build -f docker/serve.Dockerfile -t marquee-serve .
FROM python:3.11-slim

WORKDIR /app
COPY requirements requirements
# Only what serving imports, with the versions and hashes of cpu.txt: no TensorFlow, no Merlin.
RUN awk -v wanted="annotated-doc annotated-types click faiss-cpu flatbuffers markdown-it-py mdurl \
        numpy nvidia-pytriton onnxruntime packaging protobuf psutil pydantic pydantic-core pygments \
        rich shellingham typer typing-extensions typing-inspection" \
    'BEGIN { split(wanted, names, /[ \t]+/); for (i in names) want[names[i]] = 1 } \
     /^[A-Za-z0-9]/ { split($0, part, "=="); keep = (tolower(part[1]) in want) } keep' \
    requirements/cpu.txt > /tmp/serve.txt \
    && pip install --no-cache-dir --no-deps --require-hashes -r /tmp/serve.txt

COPY workflow workflow
COPY triton_repo triton_repo
# The server's logs and endpoint.json go into the run folder, so it must be writable.
RUN useradd --create-home marquee && mkdir -p runs && chown marquee /app/runs
USER marquee
ENV PYTHONUNBUFFERED=1 RUN=runs/sim XDG_CACHE_HOME=/tmp/cache
EXPOSE 8000 8001 8002
# Triton's Python backend starts the first python3 on PATH, which is this image's own.
CMD ["sh", "-c", "exec python -c 'from workflow.cli import main; main()' serve --run $RUN --host 0.0.0.0"]
