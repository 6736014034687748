# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
# The dependencies are a separate layer. It is rebuilt only when a dependency changes.
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs \
    && cargo build --release --locked --lib \
    && cargo clean --release --package token-vendor
COPY . .
RUN cargo build --release --locked --bin token-vendor

# This base image has the C library and root certificates, but no shell and no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/token-vendor /usr/local/bin/token-vendor
# A numeric user lets Kubernetes verify that the user is not root.
USER 65532:65532
# The default address, loopback, cannot be reached from outside the container.
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --start-period=30s CMD ["token-vendor", "health"]
ENTRYPOINT ["token-vendor"]
CMD ["serve"]
