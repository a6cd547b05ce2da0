# The base of apps' images: agent, trainer and Flower, and what EXTRAS of scripts/images adds.
# An app of yours with needs of its own: FROM fedfleet/trainer, then RUN python -m pip install what it imports.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS built
COPY build/wheels /wheels
COPY build/requirements.trainer.txt build/extras.txt constraints.txt /
RUN python3 -m venv /opt/fedfleet \
    && /opt/fedfleet/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels --constraint /constraints.txt \
        -r /requirements.trainer.txt -r /extras.txt
COPY build/own /own
RUN /opt/fedfleet/bin/python -m pip install --no-cache-dir --no-index --find-links /wheels --find-links /own \
        --constraint /constraints.txt 'fedfleet-agent[train]'

FROM ${BASE}
COPY --from=built /opt/fedfleet /opt/fedfleet
ENV PATH=/opt/fedfleet/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT []
CMD ["fedfleet-agent", "run", "--state", "/var/lib/fedfleet/agent"]
