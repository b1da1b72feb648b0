# A worker of the pool. Its bundle is mounted at /elma.
#   docker build -f deploy/docker/worker.Dockerfile -t elma-worker .
FROM python:3.11.11-slim-bookworm AS build
WORKDIR /source
COPY deploy/docker/constraints.txt ./
COPY pyproject.toml README.md LICENSE ./
COPY reader reader
COPY protocol protocol
COPY broker broker
COPY releases releases
COPY edge_agent edge_agent
COPY cloud_worker cloud_worker
COPY publisher publisher
COPY elma elma
COPY deploy/systemd deploy/systemd
# On x86-64 the ordinary index has torch with CUDA only, some gigabytes more: name one with the
# build for processors by --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=
RUN python -m venv /opt/elma \
 && /opt/elma/bin/pip install --no-cache-dir --constraint constraints.txt '.[worker]' \
 && /opt/elma/bin/pip uninstall --yes pip

FROM python:3.11.11-slim-bookworm
# The owner of the mounted bundle: its secrets are for that user only. Any other may run the image too.
ARG UID=10001
RUN { [ "$UID" -gt 0 ] || { echo "UID=$UID: not as root; say who owns the bundle" >&2; exit 1; }; } \
 && useradd --uid "$UID" --no-create-home --home-dir /elma --shell /usr/sbin/nologin elma \
 && install -d -o elma -m 0755 /elma
COPY --from=build /opt/elma /opt/elma
ENV PATH=/opt/elma/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
ENV ELMA_WORKER_HTTP__HOST=0.0.0.0
EXPOSE 8572
HEALTHCHECK --start-period=60s --interval=15s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8572/healthz', timeout=4)"]
USER elma
WORKDIR /elma
ENTRYPOINT ["elma", "--log-format", "json"]
CMD ["worker", "run", "--config", "/elma/worker.toml"]
