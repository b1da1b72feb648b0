# mosquitto, and the verbs that set it up and enrol members. The folder of `elma broker init` is
# mounted in /elma, and for those verbs the keys and bundles as well.
#   docker build -f deploy/docker/broker.Dockerfile -t elma-broker .
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
RUN python -m venv /opt/elma \
 && /opt/elma/bin/pip install --no-cache-dir --constraint constraints.txt '.[broker]' \
 && /opt/elma/bin/pip uninstall --yes setuptools pip

FROM python:3.11.11-slim-bookworm
# Debian's own, with its security updates: a fixed version would be gone with the next of them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends mosquitto \
 && rm -rf /var/lib/apt/lists/*
# The owner of the mounted bundle: its secrets are for that user only. Any other may run the image too.
ARG UID=10001
RUN { [ "$UID" -gt 0 ] || { echo "UID=$UID: not as root; say who owns the bundle" >&2; exit 1; }; } \
 && useradd --uid "$UID" --no-create-home --home-dir /elma --shell /usr/sbin/nologin elma \
 && install -d -o elma -m 0755 /elma
COPY --from=build /opt/elma /opt/elma
ENV PATH=/opt/elma/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
EXPOSE 8883
HEALTHCHECK --start-period=30s --interval=15s --timeout=5s \
  CMD ["python", "-c", "import socket as s; s.create_connection(('127.0.0.1', 8883), timeout=4)"]
USER elma
WORKDIR /elma
ENTRYPOINT ["elma", "--log-format", "json"]
CMD ["broker", "run", "/elma/elma-broker"]
