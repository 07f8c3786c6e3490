# The whole pipeline on CPU. Not built yet (see docker/README.md).
#   docker build -f docker/train.Dockerfile -t marquee-train .
FROM python:3.11-slim

# merlin-* and two small packages come as source only; nvtabular has a wheel for Python 3.11.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
# First what changes rarely, so that editing code does not install everything again.
COPY requirements requirements
COPY pyproject.toml ./
COPY workflow/__init__.py workflow/
COPY models/__init__.py models/
COPY triton_repo/__init__.py triton_repo/
RUN sh requirements/install.sh
COPY . .

RUN useradd --create-home marquee && mkdir -p runs && chown -R marquee /app/runs /app/.venv
USER marquee
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT ["marquee"]
CMD ["run", "--dataset", "sim"]
