# OpenBLIP in a container, without the sources:
#   docker build -t openblip .                                  for processors
#   docker build --build-arg TORCH=cu128 -t openblip:cuda .     for NVIDIA cards
# The studio, open to this machine alone:
#   docker run -p 127.0.0.1:7863:7863 -v "$PWD":/data openblip \
#     studio photos/ --host 0.0.0.0 --token "$TOKEN"
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels

FROM python:3.12-slim
# uv knows the builds of torch by name; pip would need the address of an index.
ARG TORCH=cpu
ARG EXTRAS=studio,cloud,heif,transformers
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --torch-backend="$TORCH" "$(ls /wheels/*.whl)[$EXTRAS]" \
 && rm -r /wheels
RUN useradd --create-home --uid 1000 openblip \
 && mkdir -p /data /home/openblip/.cache \
 && chown -R openblip /data /home/openblip/.cache
USER openblip
WORKDIR /data
# Models that are fetched are kept in the second one.
VOLUME ["/data", "/home/openblip/.cache"]
EXPOSE 7863
ENTRYPOINT ["openblip"]
CMD ["--help"]
