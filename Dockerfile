# A model behind HTTP. The models are not in the image: mount them at /models and name them.
#
#   docker build -t spheregen .                                            # CPU
#   docker build -t spheregen:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm -p 8000:8000 -v ./runs:/models:ro spheregen /models/mine
#   docker run --rm -p 8000:8000 --gpus all -v ./runs:/models:ro spheregen:cuda /models/mine
#
# It runs as a user without rights, writes nowhere but to /tmp, and is well with --read-only --tmpfs /tmp.
# The CUDA libraries come with torch's wheels, so both are built from the same slim image.

FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.13.0
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch==$TORCH"
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 spheregen
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER spheregen
WORKDIR /home/spheregen
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz')"]
ENTRYPOINT ["spheregen", "serve", "--host", "0.0.0.0"]
CMD ["digits"]
