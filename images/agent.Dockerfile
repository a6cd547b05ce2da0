# The resident agent alone: neither Flower nor numpy nor torch, which are the trainer's.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS built
COPY build/wheels /wheels
COPY constraints.txt /
COPY build/own /own
RUN python3 -m venv /opt/fedfleet \
    && /opt/fedfleet/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels --find-links /own \
        --constraint /constraints.txt fedfleet-agent \
    && ! /opt/fedfleet/bin/python -c 'import numpy' 2>/dev/null

FROM ${BASE}
COPY --from=built /opt/fedfleet /opt/fedfleet
ENV PATH=/opt/fedfleet/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT []
CMD ["fedfleet-agent", "run", "--state", "/var/lib/fedfleet/agent"]
