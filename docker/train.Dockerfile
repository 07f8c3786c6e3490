# Trains, and writes the model repository; from NVIDIA's Merlin container (Python 3.10, TensorFlow
# 2.12, cuDF). See docker/README.md.
#   docker build -f docker/train.Dockerfile -t marquee-train .
FROM nvcr.io/nvidia/merlin/merlin-tensorflow:23.08

# What that image lacks goes into a folder of its own, found before the image's packages, which
# stay as they are.
COPY requirements/container-train.txt /tmp/train.txt
RUN python3 -m pip install --no-cache-dir --no-deps --no-build-isolation --require-hashes \
        --target /srv/marquee -r /tmp/train.txt

WORKDIR /app
COPY workflow workflow
COPY models models
COPY triton_repo triton_repo
COPY docker/train.sh docker/marquee /usr/local/bin/

# A new volume takes owner and mode of the folder that it covers.
RUN mkdir runs && chown 1000:1000 runs
USER 1000:1000
ENV HOME=/tmp PYTHONPATH=/srv/marquee:/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["train.sh"]
CMD ["--dataset", "sim"]
