# The image of producer and worker. Users build theirs FROM it: examples/image.
#
# ARGs are for the build alone and are gone at run time; what the worker is to see is set by ENV
# here, or by the environment of the container (docs/how-to/image.md).

# Another Python, one from a registry of your own, or one pinned to its content:
#   --build-arg BASE=registry.example.com/python:3.13-slim-bookworm@sha256:...
ARG BASE=docker.io/library/python:3.13-slim-bookworm


FROM ${BASE} AS build
SHELL ["/bin/sh", "-eu", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements-build.txt requirements-image.txt ./

# Two secrets, both optional: a pip.conf that names a mirror, and a file of CA certificates to trust
# in place of pip's own. Neither stays in a layer.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca,target=/etc/build-ca.pem \
    if [ -s /etc/build-ca.pem ]; then export PIP_CERT=/etc/build-ca.pem; fi; \
    python -m venv --without-pip /opt/imece; \
    python -m pip --python /opt/imece/bin/python install --require-hashes --only-binary :all: \
      -r requirements-image.txt; \
    python -m pip install --require-hashes --only-binary :all: -r requirements-build.txt

# After the libraries: a change in the sources does not install those again.
COPY pyproject.toml README.md LICENSE ./
COPY imece imece
COPY producer producer
COPY worker worker
RUN python -m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /tmp/wheel .; \
    python -m pip --python /opt/imece/bin/python install --no-deps --no-index /tmp/wheel/*.whl


FROM ${BASE}
LABEL org.opencontainers.image.title="imece" \
      org.opencontainers.image.description="Turns a folder of files into outputs, in parallel" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/imece /opt/imece
# /tmp is the one place that can be written to when the root file system is read-only. A user id
# that is in no list of users has no home else.
ENV PATH=/opt/imece/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A processor that lies here is found.
WORKDIR /app
# As a number, so that Kubernetes can tell that it is not root. Any other number will do as well:
# nothing here is written to, and all of it may be read by everybody.
USER 1000:0
# No shell in between, so that the worker is process 1 and gets the signals.
ENTRYPOINT ["imece-worker"]
