# The hub: coordinator, broker, operator and runner. One image, four commands; see manifests/hub.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS built
COPY build/wheels /wheels
COPY build/requirements.coordinator.txt build/extras.txt constraints.txt /
RUN python3 -m venv /opt/fedfleet \
    && /opt/fedfleet/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels --constraint /constraints.txt \
        -r /requirements.coordinator.txt -r /extras.txt
COPY build/own /own
RUN /opt/fedfleet/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels --find-links /own \
        --constraint /constraints.txt 'fedfleet-coordinator[postgres]'

FROM ${BASE}
# The broker. A base image that has it already needs no network here.
RUN command -v mosquitto /usr/sbin/mosquitto >/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends mosquitto && rm -rf /var/lib/apt/lists/*)
COPY --from=built /opt/fedfleet /opt/fedfleet
ENV PATH=/opt/fedfleet/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT []
CMD ["fedfleet-coordinator", "serve", "--state", "/var/lib/fedfleet"]
