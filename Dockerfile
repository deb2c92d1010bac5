# OpenBLIP in a container, from its wheel, without the sources:
#   docker build -t openblip .                        for processors
#   docker build --target cuda -t openblip:cuda .     for NVIDIA cards (docker run --gpus all)
# The studio, open to this machine alone:
#   docker run -p 127.0.0.1:7863:7863 -v "$PWD":/data openblip \
#     studio photos/ --host 0.0.0.0 --token "$TOKEN"
ARG PYTHON=3.13
ARG EXTRAS=studio,cloud,heif,transformers
FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:${PYTHON}-slim AS base
RUN pip install --no-cache-dir uv \
 && useradd --create-home --uid 1000 openblip \
 && mkdir -p /data /home/openblip/.cache \
 && chown -R openblip /data /home/openblip/.cache
COPY --from=build /wheels /wheels
WORKDIR /data
# Models that are fetched are kept in the second one.
VOLUME ["/data", "/home/openblip/.cache"]
EXPOSE 7863
ENTRYPOINT ["openblip"]
CMD ["--help"]
# Of the studio: whether it listens, for without the token it answers nothing. Other commands are well
# as long as they run.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import socket, pathlib; \
words = pathlib.Path('/proc/1/cmdline').read_text().split('\\0'); \
'studio' in words and socket.create_connection(('127.0.0.1', int(words[words.index('--port') + 1]) if '--port' in words else 7863), 4)"]

# uv knows the builds of torch by name; pip would need the address of an index.
FROM base AS cuda
ARG TORCH=cu128
ARG EXTRAS
RUN uv pip install --system --no-cache --torch-backend="$TORCH" "$(ls /wheels/*.whl)[${EXTRAS:?}]"
USER openblip

# The last one is what is built where no target is named.
FROM base AS cpu
ARG EXTRAS
RUN uv pip install --system --no-cache --torch-backend=cpu "$(ls /wheels/*.whl)[${EXTRAS:?}]"
USER openblip
