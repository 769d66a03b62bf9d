# An image that starts warm: its kernels are compiled while it is built.
#
#   docker build -t moe-gguf --build-arg TORCH_INDEX_URL=ADDRESS .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" moe-gguf export Harmony-4x7B-bf16 -t Q4_K_M
#
# docs/faq.md says more.
FROM python:3.12-slim

# Kernels are compiled for a level of x86-64, not for the processor that builds the image, of whose code another one
# would use nothing. A processor below the level stops with an illegal instruction; x86-64-v3 is AVX2.
ARG CPU=x86-64-v3
ENV NUMBA_CPU_NAME=${CPU} \
    NUMBA_CPU_FEATURES="" \
    NUMBA_CACHE_DIR=/opt/moe-gguf/kernels \
    PYTHONUNBUFFERED=1

WORKDIR /opt/moe-gguf/source
COPY scripts/constraints.txt scripts/
# The address that pytorch.org's "Get started" shows for pip and CPU: without it come gigabytes for GPUs.
ARG TORCH_INDEX_URL=""
RUN pip install --no-cache-dir -c scripts/constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE ./
COPY quantize quantize
COPY calibration calibration
COPY gguf_export gguf_export
RUN pip install --no-cache-dir -c scripts/constraints.txt .

WORKDIR /work
RUN useradd --create-home moe && install -d -o moe /opt/moe-gguf/kernels && chown moe /work
USER moe
RUN moe-gguf warm
VOLUME /work
ENTRYPOINT ["moe-gguf"]
CMD ["--help"]
