# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
# No database at build time: the queries were checked against the committed .sqlx.
ENV SQLX_OFFLINE=true
COPY . .
# The caches keep downloaded and built dependencies from one build to the next.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked \
    && cp target/release/token-vendor /usr/local/bin/

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin token-vendor
COPY --from=build /usr/local/bin/token-vendor /usr/local/bin/token-vendor
# By number, so that Kubernetes can tell that it is not root.
USER 10001
# The default, loopback, is out of reach from outside the container.
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
ENTRYPOINT ["token-vendor"]
CMD ["serve"]
