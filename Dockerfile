# medseq for a CPU; with --build-arg CUDA=1 and a CUDA base image, with mamba-ssm and causal-conv1d.
#
#   docker build --build-arg TORCH_INDEX=<index of CPU builds of torch> -t medseq .
#   docker run --rm -v "$PWD/in:/data:ro" -v "$PWD/out:/out" medseq predict ct-denoise /data /out
#
# TORCH_INDEX has no default: without it torch comes from the configured package index, which may bring CUDA.
ARG BASE=python:3.11-slim-bookworm
ARG RUNTIME=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH_INDEX
ARG CUDA=0
ARG EXTRAS=dicom,wsi,mri,review,export
SHELL ["/bin/sh", "-eu", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE constraints.txt ./
COPY LICENSES LICENSES
COPY container container
COPY apps apps
COPY configs configs
COPY data_manifests data_manifests
COPY medseq medseq
RUN TORCH_INDEX="${TORCH_INDEX:-}" CUDA="${CUDA}" EXTRAS="${EXTRAS}" container/install.sh /src /opt/medseq

FROM ${RUNTIME} AS run
# OpenMP of the kernels; the rest comes in wheels.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --shell /usr/sbin/nologin medseq \
    && install -d -o medseq -g medseq /out /spool
COPY --from=build /opt/medseq /opt/medseq
ENV PATH=/opt/medseq/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1
USER 10001:10001
WORKDIR /out
# The package and its models can be read; services have checks of their own in compose.yaml.
HEALTHCHECK --interval=5m --timeout=30s --start-period=30s CMD ["medseq", "zoo", "--json"]
ENTRYPOINT ["medseq"]
CMD ["--help"]
