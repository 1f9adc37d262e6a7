# Headrace in a container, for the CPU.
#
#   docker build --tag headrace .
#   docker run --init --shm-size=256m --publish 127.0.0.1:8000:8000 --volume headrace:/data headrace
#
# The service listens on all of the container's addresses (HEADRACE_HOST below), for nothing else
# could reach it. It asks nobody for a password: publish the port to 127.0.0.1 as above, or put a
# proxy with authentication before it. --shm-size leaves room for Ray's object store. A stop lets
# every step save a cut, which takes some seconds: `docker stop -t 60`. A kill is safe, too: the
# next start replays what came after the last cuts.

FROM python:3.11-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/headrace

# torch first, so that nothing that needs it chooses another build. TORCH_INDEX is an index with
# CPU builds; without it pip may choose the CUDA build, which works too and is gigabytes larger.
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN python -m pip install --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY streaming ./streaming
COPY features ./features
COPY trainers ./trainers
COPY serving ./serving
COPY infra ./infra
COPY benchmarks ./benchmarks
# EXTRAS: `cluster` for infra/k8s/ray, `ray-serve` for `headrace serve --ray` on one machine.
ARG EXTRAS=""
RUN python -m pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

# numba keeps what it compiles in the user's own directory: the installed package is not writable.
RUN useradd --create-home --uid 10001 headrace \
    && install --directory --owner=headrace --group=headrace /data
USER headrace
WORKDIR /home/headrace
ENV HEADRACE_HOME=/data \
    HEADRACE_HOST=0.0.0.0 \
    HEADRACE_METRICS_HOST=0.0.0.0 \
    NUMBA_CACHE_DIR=/home/headrace/.cache/numba

VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=3s --start-period=60s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["headrace", "run"]
